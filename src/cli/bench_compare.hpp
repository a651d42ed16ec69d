#pragma once

#include "cli/bench_steps.hpp"
#include "cli/console.hpp"

namespace rankslice::cli {

/// @throws UsageError for what other libraries cannot load into the same state dict
void require_comparable(Checkpoint const& checkpoint);

/// Start the libraries that the Python of the subject has, and see that each loads what `held` is; that is given back.
/// Those that are not there or fail are left out and named. Collective.
/// @throws IoError when that Python does nothing at all, VerifyError when ours in Python loads something else
void find_other_loaders(BenchSubject& subject, Console& console);
/// End them, and say so.
void forget_loaders(BenchSubject& subject, std::vector<StepResult::LeftOut> const& failed, Console& console);

/// Loading by us and by other libraries. Local.
[[nodiscard]] Step compare_step(BenchSubject& subject);
/// The same with nothing in the page cache.
[[nodiscard]] Step compare_cold_step(BenchSubject& subject);

}  // namespace rankslice::cli
