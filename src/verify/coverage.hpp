#pragma once

#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"
#include "rankslice/verify.hpp"

#include "verify/mesh_tables.hpp"

namespace rankslice {

/// Every rank has the same source, selection, names, dtypes and global shapes as rank 0; those that have not say so in
/// `mismatches`. Returns whether all have: only then can tables of numbers be compared. Collective.
[[nodiscard]] bool check_alike(StateDict const& state, Communicator& world, std::vector<Mismatch>& mismatches);

/// Every expert of every selected stacked tensor is on exactly one rank of each replica, every selected dense tensor on
/// all. Rank 0 says what is not. Collective.
void check_coverage(StateDict const& state, MeshTables& mesh, bool is_first, std::vector<Mismatch>& mismatches);

}  // namespace rankslice
