#include "format/hub_files.hpp"

#include <fmt/format.h>

#include <utility>

namespace rankslice {

namespace {

using Tensor = SafetensorsHeader::Tensor;

void name_files(std::vector<HubFile>& files, std::string_view stem) {
  for (std::size_t i = 0; i < files.size(); ++i) {
    files[i].name = files.size() == 1 ? "model.safetensors"
                                      : fmt::format("{}-{:05}-of-{:05}.safetensors", stem, i + 1, files.size());
  }
}

}  // namespace

std::vector<HubFile> split_into_files(std::vector<Tensor> tensors, std::uint64_t limit, std::string_view stem) {
  std::vector<HubFile> files;
  HubFile open;
  std::uint64_t open_bytes = 0;
  for (auto& tensor : tensors) {
    auto const bytes = byte_size(tensor.dtype, tensor.shape);
    if (bytes > limit) {  // goes before the file that is being filled, as in huggingface_hub
      files.push_back({{}, {std::move(tensor)}});
      continue;
    }
    if (open_bytes + bytes > limit) {
      files.push_back(std::exchange(open, {}));
      open_bytes = 0;
    }
    open.tensors.push_back(std::move(tensor));
    open_bytes += bytes;
  }
  if (!open.tensors.empty()) files.push_back(std::move(open));

  name_files(files, stem);
  return files;
}

std::vector<HubFile> deal_into_files(std::vector<Tensor> tensors, std::uint64_t share, std::string_view stem) {
  std::vector<HubFile> files;
  std::uint64_t begin = 0, last_share = 0;
  for (auto& tensor : tensors) {
    if (files.empty() || begin / share != last_share) files.emplace_back();
    last_share = begin / share;
    begin += byte_size(tensor.dtype, tensor.shape);
    files.back().tensors.push_back(std::move(tensor));
  }
  name_files(files, stem);
  return files;
}

std::uint64_t tensor_bytes(std::vector<Tensor> const& tensors) {
  std::uint64_t bytes = 0;
  for (auto const& tensor : tensors) bytes += byte_size(tensor.dtype, tensor.shape);
  return bytes;
}

}  // namespace rankslice
