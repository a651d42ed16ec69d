#pragma once

#include "rankslice/communicator.hpp"
#include "rankslice/verify.hpp"

namespace rankslice {

/// Make the mismatches that any rank found, of each the first 1000 and of all the first 10000, those of every rank, by
/// rank; the others are counted. Collective.
void share_mismatches(VerifyReport& report, Communicator& world);

}  // namespace rankslice
