#pragma once

#include <vector>

#include "rankslice/options.hpp"
#include "rankslice/state_dict.hpp"

#include "plan/plan.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// Read some of what a state holds from its source into its memory, in the order of the files; it is digested,
/// converted and turned on its way, by `call.threads` threads, but by one where tensors are on a device. Returns the
/// digests, none at levels that need none. Local.
/// @throws IoError, FormatError, DeviceError; PlanError for values that are in none of the files
[[nodiscard]] Digests read_values(StateDict const& state, std::vector<PlannedSlice> const& slices, VerifyLevel level,
                                  CallOptions const& call, BlockDone const& done);

}  // namespace rankslice
