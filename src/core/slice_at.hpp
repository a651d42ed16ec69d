#pragma once

#include <optional>

#include "rankslice/parameter.hpp"

namespace rankslice {

/// What a local tensor of a shape, at these offsets in the global one, holds of a parameter: of stacked experts a box
/// of experts and rows, of a dense tensor some of axis 0. Nothing when it does not lie inside, or is not whole along
/// another axis. Pure.
[[nodiscard]] std::optional<Slice> slice_at(Parameter const& parameter, Shape const& offsets, Shape const& local);

}  // namespace rankslice
