#pragma once

#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/verify.hpp"

namespace rankslice {

/// Make the list of what any rank found the list of every rank, by rank. Collective.
void share_mismatches(std::vector<Mismatch>& mismatches, Communicator& world);

}  // namespace rankslice
