#pragma once

#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"
#include "rankslice/verify.hpp"

#include "verify/mesh_tables.hpp"

namespace rankslice {

/// Every rank has the same mesh, source, names, dtypes, layouts and global shapes as rank 0; those that have not say so
/// in `mismatches`. Returns whether all have: only then can tables of numbers be compared. Collective.
[[nodiscard]] bool check_alike(StateDict const& state, Communicator& world, std::vector<Mismatch>& mismatches);

/// Every row of every expert of every stacked tensor is on exactly one rank of each replica, and every dense tensor is
/// there, on all ranks then, as they are alike. One rank of each replica says what is not. Collective.
void check_coverage(StateDict const& state, MeshTables& mesh, std::vector<Mismatch>& mismatches);

}  // namespace rankslice
