#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "rankslice/options.hpp"

#include "synth/model_shapes.hpp"

namespace rankslice {

struct SynthOptions {
  std::string family = "qwen3_5_moe";  ///< Or another one of SynthFamily, or `auto`: that of the preset.
  std::string preset = "tiny";         ///< See synth/presets.hpp.
  std::uint64_t seed = 0;
  std::optional<std::uint64_t> layers = std::nullopt;   ///< Decoder layers instead of the preset's, 1 to 1024.
  std::optional<std::uint64_t> experts = std::nullopt;  ///< Experts per layer instead of the preset's, 1 to 65536.
  SynthLayout layout = SynthLayout::hub;
  SynthQuantization quantization = SynthQuantization::none;
  std::optional<ExpertForm> decoder_experts = std::nullopt;  ///< Instead of the layout's.
  std::optional<ExpertForm> mtp_experts = std::nullopt;      ///< Instead of the preset's.
  bool text_only = false;                                    ///< Without the vision tower, as `qwen3_5_moe_text`.
  bool headers_only = false;                                 ///< Files of the right size whose tensor bytes are holes.
  bool overwrite = false;
  bool dry_run = false;  ///< Only say what would be written.
  CallOptions call = {};
};

struct SynthReport {
  std::string family;
  std::uint64_t files = 0;    ///< Safetensors files.
  std::uint64_t tensors = 0;  ///< In all of them.
  std::uint64_t bytes = 0;    ///< Of all tensors.
};

/// Write a checkpoint with the names, shapes, dtypes, files, config.json and side files of a real model as it is on the
/// Hub, or as transformers writes one, and values that depend on seed, tensor name and element index alone
/// (synth/values.hpp). It appears under `out_dir` whole and synced, or not at all. Local.
/// @throws UsageError for families, presets, layers or experts that there are not, and for options that contradict each
/// other; IoError, Interrupted.
SynthReport synthesize(std::string const& out_dir, SynthOptions const& options);

}  // namespace rankslice
