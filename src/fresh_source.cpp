#include "fresh_source.hpp"

#include <set>
#include <utility>

#include "format/fresh_layout.hpp"
#include "model/fresh_model.hpp"

namespace rankslice {

void add_fresh_files(CheckpointParts& parts, std::uint64_t max_file_bytes) {
  auto const& family = find_family(parts.family, {});
  std::set<std::string_view> seen;
  std::vector<NativeTensor> natives;
  for (auto const& native : parts.native) {
    if (seen.insert(native.fqn).second) natives.push_back({native.fqn, native.dtype, native.shape});
  }
  std::vector<SafetensorsHeader::Tensor> tensors;
  for (auto const& tensor : make_fresh_model(family, natives).tensors) {
    tensors.push_back({tensor.key, tensor.dtype, tensor.shape, {}});
  }
  parts.hf = make_fresh_layout(std::move(tensors), max_file_bytes);
  parts.hf.headers = HeaderOrigin::state;
}

}  // namespace rankslice
