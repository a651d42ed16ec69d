#include "fresh_source.hpp"

#include <fmt/format.h>

#include <set>
#include <utility>

#include "rankslice/error.hpp"

#include "format/fresh_layout.hpp"
#include "model/family.hpp"

namespace rankslice {

namespace {

SafetensorsHeader::Tensor hf_tensor(Family const& family, CheckpointParts::Native const& native) {
  auto const mapping = family.to_hf(native.fqn);
  auto shape = native.shape;
  if (mapping.stacked_experts && shape.size() != 3) {
    throw FormatError(fmt::format("{}: stacked experts need 3 axes, found the shape {}", native.fqn, to_string(shape)),
                      {}, native.fqn);
  }
  if (mapping.layout == Layout::swapped) std::swap(shape[1], shape[2]);
  return {mapping.name, native.dtype, std::move(shape), {}};
}

}  // namespace

void add_fresh_files(CheckpointParts& parts, std::uint64_t max_file_bytes) {
  auto const& family = find_family(parts.family, {});
  std::set<std::string_view> seen;
  std::vector<SafetensorsHeader::Tensor> tensors;
  for (auto const& native : parts.native) {
    if (seen.insert(native.fqn).second) tensors.push_back(hf_tensor(family, native));
  }
  parts.hf = make_fresh_layout(std::move(tensors), max_file_bytes);
  parts.hf.headers = HeaderOrigin::state;
}

}  // namespace rankslice
