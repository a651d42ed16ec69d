#pragma once

#include "cli/bench_steps.hpp"
#include "cli/console.hpp"

namespace rankslice::cli {

/// @throws UsageError for what other libraries cannot load into the same state dict
void require_comparable(Checkpoint const& checkpoint);

/// See which libraries the Python of the subject has, and tell of those that it lacks. Collective. @throws IoError
void find_other_loaders(BenchSubject& subject, Console& console);

/// Loading by us and by other libraries. See first that all have the same in the end. Local. @throws VerifyError
[[nodiscard]] Step compare_step(BenchSubject& subject);
/// The same with nothing in the page cache, after `compare_step`.
[[nodiscard]] Step compare_cold_step(BenchSubject& subject);

}  // namespace rankslice::cli
