#pragma once

#include "rankslice/communicator.hpp"
#include "rankslice/options.hpp"

namespace rankslice {

/// The call with `threads` decided: what it says, or this rank's fair share of the processors of its host, which are
/// also those of other ranks of this world. Collective.
[[nodiscard]] CallOptions with_threads(CallOptions call, Communicator& world);

/// The same for one who is alone: all processors that it may run on. Local.
[[nodiscard]] CallOptions with_threads(CallOptions call);

}  // namespace rankslice
