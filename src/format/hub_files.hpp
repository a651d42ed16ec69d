#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "format/safetensors.hpp"

namespace rankslice {

/// One safetensors file of a checkpoint that is yet to be written, and what goes into it.
struct HubFile {
  std::string name;
  std::vector<SafetensorsHeader::Tensor> tensors;  ///< Without `bytes`.
};

/// Divide tensors among files as huggingface_hub does: greedily in their order, a new file when `limit` tensor bytes
/// would be passed; a tensor larger than that gets a file of its own. STEM-00001-of-00003.safetensors …, or
/// `model.safetensors` when one file is enough. Pure.
[[nodiscard]] std::vector<HubFile> split_into_files(std::vector<SafetensorsHeader::Tensor> tensors, std::uint64_t limit,
                                                    std::string_view stem = "model");

/// Deal tensors, in their order, to files of about `share` tensor bytes: a tensor goes where its first byte would, were
/// all of them cut into equal shares. The names are those of `split_into_files`. Pure.
[[nodiscard]] std::vector<HubFile> deal_into_files(std::vector<SafetensorsHeader::Tensor> tensors, std::uint64_t share,
                                                   std::string_view stem = "model");

/// Bytes of all tensors.
[[nodiscard]] std::uint64_t tensor_bytes(std::vector<SafetensorsHeader::Tensor> const& tensors);

}  // namespace rankslice
