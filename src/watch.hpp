#pragma once

#include <string_view>

#include "rankslice/communicator.hpp"
#include "rankslice/options.hpp"

#include "transform/transfer.hpp"

namespace rankslice {

/// What a long call does after every block: tell the other ranks and the caller, and stop when asked to. Copies count
/// together, so that the passes of one call make one progress. `world`, which may be null, outlives the result.
[[nodiscard]] BlockDone watch(CallOptions const& call, std::string_view phase, std::uint64_t total_bytes,
                              Communicator* world);

}  // namespace rankslice
