#pragma once

#include <functional>
#include <vector>

#include "rankslice/verify.hpp"

#include "plan/plan.hpp"

namespace rankslice {

/// What of a checkpoint a rank has read. Pure.
using ReadByRank = std::function<std::vector<PlannedSlice>(int rank)>;

/// Read what every rank has read once more, on another rank where there is one, and compare the digests: `read` is what
/// this rank made of its bytes. What differs is added by the rank that read it first, and the report gets to know who
/// read again. Bounded memory. Collective. @throws IoError, FormatError
void read_again(Checkpoint const& source, ReadByRank const& slices_of, Digests const& read, Communicator& world,
                CallOptions const& call, VerifyReport& report);

/// The same for one rank alone, which reads its own bytes again. `rank` is what messages call it. Not
/// collective.
void read_again(Checkpoint const& source, std::vector<PlannedSlice> const& slices, Digests const& read, int rank,
                CallOptions const& call, VerifyReport& report);

/// Read once more what an earlier run has read, each rank the slices that are its part of that now; `before` is what
/// all ranks together made of it then. Adds to what was read again already, of which the report then no longer says
/// that other ranks did it: who reads again may be who read then. Collective. @throws IoError, FormatError
void read_again_after(Checkpoint const& source, ReadByRank const& slices_of, Digests const& before, Communicator& world,
                      CallOptions const& call, VerifyReport& report);

}  // namespace rankslice
