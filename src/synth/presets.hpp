#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "synth/model_shapes.hpp"

namespace rankslice {

/// A named model size and the way it is cut into files.
struct Preset {
  std::string_view name;
  Qwen35MoeDims dims;
  std::uint64_t file_limit = 0;  ///< Tensor bytes after which a new file begins.
};

/// All presets of `qwen3_5_moe`, by size.
[[nodiscard]] std::span<Preset const> presets();

/// @throws UsageError that lists the presets there are.
[[nodiscard]] Preset const& find_preset(std::string_view name);

}  // namespace rankslice
