#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "synth/model_shapes.hpp"

namespace rankslice {

/// One safetensors file of a checkpoint and what goes into it.
struct HubFile {
  std::string name;
  std::vector<SynthTensor> tensors;
};

/// Divide tensors among files as huggingface_hub does: greedily in their order, a new file when `limit` tensor bytes
/// would be passed; a tensor larger than that gets a file of its own. `model-00001-of-00003.safetensors` …, or
/// `model.safetensors` when one file is enough.
[[nodiscard]] std::vector<HubFile> split_into_files(std::vector<SynthTensor> tensors, std::uint64_t limit);

/// The text of `model.safetensors.index.json` as huggingface_hub writes it.
[[nodiscard]] std::string index_json(std::vector<HubFile> const& files);

/// Bytes of all tensors.
[[nodiscard]] std::uint64_t tensor_bytes(std::vector<SynthTensor> const& tensors);

}  // namespace rankslice
