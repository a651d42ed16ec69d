#pragma once

#include <optional>
#include <vector>

#include "rankslice/state_dict.hpp"

#include "plan/plan.hpp"

namespace rankslice {

/// A rank's local tensor and its place in the global one, still without memory. Pure.
[[nodiscard]] ShardedTensor place_local_tensor(Parameter const& parameter, PlannedSlice const& planned,
                                               Mesh const& mesh);

/// What the mesh gives to this rank where a local tensor says by its placements that this is what it is; empty for a
/// mesh that does not divide the rows. Nothing for tensors that others divided. The coordinate is inside. Pure.
[[nodiscard]] std::optional<Slice> slice_by_placements(ShardedTensor const& tensor, Mesh const& mesh,
                                                       MeshCoordinate const& coordinate);

/// What this rank holds of the parameters of a state's source, in the order of the state. Pure.
[[nodiscard]] std::vector<PlannedSlice> slices_held(StateDict const& state);

/// Whether it has tensors on a device, which one thread uses.
[[nodiscard]] bool on_a_device(StateDict const& state);

}  // namespace rankslice
