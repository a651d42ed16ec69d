#pragma once

#include <string>
#include <vector>

#include "synth/model_shapes.hpp"
#include "synth/text_file.hpp"

namespace rankslice {

/// `config.json` as it is on the Hub for a Qwen3.5-MoE model: transformers builds the same tensors from it.
[[nodiscard]] std::string config_json(Qwen35MoeDims const& dims);

/// Everything that a Qwen3.5-MoE repository holds beside weights and index, with small but valid contents.
[[nodiscard]] std::vector<TextFile> side_files(Qwen35MoeDims const& dims);

}  // namespace rankslice
