#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "format/safetensors.hpp"

namespace rankslice {

/// Files and index of a checkpoint that is yet to be written, byte for byte as `save_torch_state_dict` of
/// huggingface_hub makes them of a state dict in this order: no index for a single file. No side files. Pure.
/// @param tensors name, dtype and shape (`bytes` is ignored); names are distinct.
/// @throws FormatError as `make_safetensors_header`
[[nodiscard]] HfLayout make_fresh_layout(std::vector<SafetensorsHeader::Tensor> tensors,
                                         std::uint64_t max_file_bytes = kMaxFileBytes);

}  // namespace rankslice
