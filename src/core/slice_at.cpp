#include "core/slice_at.hpp"

namespace rankslice {

std::optional<Slice> slice_at(Parameter const& parameter, Shape const& offsets, Shape const& local) {
  auto const& global = parameter.shape;
  if (local.size() != global.size() || offsets.size() != global.size()) return std::nullopt;
  auto const divided_axes = parameter.stacked_experts ? 2U : 1U;
  for (std::size_t axis = 0; axis < global.size(); ++axis) {
    auto const fits = axis < divided_axes ? offsets[axis] <= global[axis] && local[axis] <= global[axis] - offsets[axis]
                                          : offsets[axis] == 0 && local[axis] == global[axis];
    if (!fits) return std::nullopt;
  }
  if (parameter.stacked_experts) {
    return Slice{.part = {offsets[0], offsets[0] + local[0]}, .rows = {offsets[1], offsets[1] + local[1]}};
  }
  if (global.empty() || local[0] == global[0]) return parameter.whole();
  if (parameter.part_count() % global[0] != 0) return std::nullopt;  // of sub-byte types that end within a byte
  auto const units = parameter.part_count() / global[0];             // of one index of axis 0
  return Slice{.part = {offsets[0] * units, (offsets[0] + local[0]) * units}};
}

}  // namespace rankslice
