#include "core/slice_at.hpp"

namespace rankslice {

std::optional<Slice> slice_at(Parameter const& parameter, Shape const& offsets, Shape const& local) {
  auto const& global = parameter.shape;
  if (local.size() != global.size() || offsets.size() != global.size()) return std::nullopt;
  for (std::size_t axis = 0; axis < global.size(); ++axis) {
    auto const sharded = parameter.stacked_experts && axis < 2;
    auto const fits = sharded ? offsets[axis] <= global[axis] && local[axis] <= global[axis] - offsets[axis]
                              : offsets[axis] == 0 && local[axis] == global[axis];
    if (!fits) return std::nullopt;
  }
  if (!parameter.stacked_experts) return parameter.whole();
  return Slice{.part = {offsets[0], offsets[0] + local[0]}, .rows = {offsets[1], offsets[1] + local[1]}};
}

}  // namespace rankslice
