#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/hub_files.hpp"
#include "synth/model_shapes.hpp"

namespace rankslice {

/// A named model and the way its checkpoint is cut into files.
struct Preset {
  std::string_view name;
  SynthModel model;
  std::uint64_t file_limit = 5'000'000'000;  ///< Tensor bytes after which huggingface_hub begins a new file.
  std::uint64_t files = 0;                   ///< Of releases that were cut otherwise: how many there are.
  std::string_view file_stem = "model";      ///< Of names like STEM-00001-of-00003.safetensors.
};

/// All presets: for each family tiny, small and medium, then the real models by size.
[[nodiscard]] std::span<Preset const> presets();

/// @param family its name, or `auto`: that of the preset, or the first one of those that have it.
/// @throws UsageError for families and presets that there are not, or not together; it lists those there are.
[[nodiscard]] Preset const& find_preset(std::string_view family, std::string_view preset);

/// The files of a checkpoint: those of the preset when `model` is its own; as large when it was cut down.
[[nodiscard]] std::vector<HubFile> files_of(Preset const& preset, SynthModel const& model);

/// The names of all presets, each once, with commas between them.
[[nodiscard]] std::string preset_names();

}  // namespace rankslice
