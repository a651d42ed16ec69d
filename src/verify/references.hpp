#pragma once

#include <functional>

#include "rankslice/verify.hpp"

namespace rankslice {

/// Compare the digests of what all ranks read with every reference there is: what `source` recorded itself, and
/// `options.against`. Rank 0 adds what differs to the report. `restrict`, when given, drops the tensors that are not to
/// be compared from a list of reference digests. Collective when there is an `against`.
void compare_with_references(Checkpoint const& source, Digests const& read, VerifyOptions const& options,
                             Communicator& world, std::function<Digests(Digests const&)> const& restrict,
                             VerifyReport& report);

}  // namespace rankslice
