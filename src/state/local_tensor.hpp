#pragma once

#include <vector>

#include "rankslice/state_dict.hpp"

#include "plan/plan.hpp"

namespace rankslice {

/// A rank's local tensor and its place in the global one, still without memory. Pure.
[[nodiscard]] ShardedTensor place_local_tensor(Parameter const& parameter, PlannedSlice const& planned,
                                               Mesh const& mesh);

/// What this rank holds of the parameters of a state's source, in the order of the state. Pure.
[[nodiscard]] std::vector<PlannedSlice> slices_held(StateDict const& state);

}  // namespace rankslice
