#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "format/safetensors.hpp"

namespace rankslice {

/// One safetensors file of a checkpoint and what goes into it.
struct FreshFile {
  std::string name;
  std::vector<SafetensorsHeader::Tensor> tensors;
};

/// Divide tensors among files as huggingface_hub does: greedily in their order, a new file when `limit` tensor bytes
/// would be passed; a tensor larger than that gets a file of its own. `model-00001-of-00003.safetensors` …, or
/// `model.safetensors` when one file is enough. Pure.
[[nodiscard]] std::vector<FreshFile> split_into_files(std::vector<SafetensorsHeader::Tensor> tensors,
                                                      std::uint64_t limit);

/// Files and index of a checkpoint that is yet to be written, byte for byte as `save_torch_state_dict` of
/// huggingface_hub makes them of a state dict in this order: no index for a single file. No side files. Pure.
/// @param tensors name, dtype and shape (`bytes` is ignored); names are distinct.
/// @throws FormatError as `make_safetensors_header`
[[nodiscard]] HfLayout make_fresh_layout(std::vector<SafetensorsHeader::Tensor> tensors,
                                         std::uint64_t max_file_bytes = kMaxFileBytes);

}  // namespace rankslice
