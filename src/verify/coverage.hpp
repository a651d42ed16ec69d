#pragma once

#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"
#include "rankslice/verify.hpp"

#include "core/holdings.hpp"

namespace rankslice {

/// Every rank has the same mesh, source, names, dtypes, layouts and global shapes as rank 0; those that have not say so
/// in `mismatches`. Returns whether all have: only then can tables of numbers be compared. Collective.
[[nodiscard]] bool check_alike(StateDict const& state, Communicator& world, std::vector<Mismatch>& mismatches);

/// The slices that the ranks hold make up every tensor: two of them are apart, or the same on ranks that hold copies.
/// Rank 0 says what is not so; ranks are alike. And where a tensor's placements say that its slice is the mesh's, it
/// is: else a rank of one replica could hold what another replica has under another coordinate, and pass for its copy.
/// Each rank says that of its own. Local.
void check_coverage(StateDict const& state, Holdings const& holdings, std::vector<Mismatch>& mismatches);

}  // namespace rankslice
