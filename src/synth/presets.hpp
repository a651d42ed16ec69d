#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "synth/model_shapes.hpp"

namespace rankslice {

/// A named model and the way its checkpoint on the Hub is cut into files.
struct Preset {
  std::string_view name;
  SynthModel model;
  std::uint64_t file_limit = 0;          ///< Tensor bytes after which a new file begins.
  std::string_view file_stem = "model";  ///< Files are STEM-00001-of-00003.safetensors.
};

/// All presets: for each family tiny, small and medium, then the real models by size.
[[nodiscard]] std::span<Preset const> presets();

/// @param family its name, or `auto`: that of the preset, where only one family has it.
/// @throws UsageError for families and presets that there are not, or not together; it lists those there are.
[[nodiscard]] Preset const& find_preset(std::string_view family, std::string_view name);

/// The names of all presets, each once, with commas between them.
[[nodiscard]] std::string preset_names();

}  // namespace rankslice
