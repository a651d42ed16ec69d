#pragma once

#include <string>

#include "cli/options.hpp"

namespace rankslice::cli {

/// The command line of a `bench` that has these options, as a shell reads it: what makes the same figures again where
/// the same things are. Of paths only the last part. Pure.
[[nodiscard]] std::string bench_command(Options const& options, int ranks);

}  // namespace rankslice::cli
