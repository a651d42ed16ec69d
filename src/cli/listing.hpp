#pragma once

#include <string>

#include "cli/job.hpp"

namespace rankslice::cli {

/// Print what every rank of a mesh, or `--rank` alone in detail, reads and holds: a table, or JSON with `--json`.
/// Rank 0 does it.
void list_plan(Job& job, Checkpoint const& source, Mesh const& mesh, DenseReading dense);

/// Put quantisation, conversions and what was chosen of them into the report. Local.
void report_values(Job& job, Checkpoint const& checkpoint);

/// Say what the report has of them.
void say_values(Job& job);

/// One line for people, and what it says of bytes that were read again.
[[nodiscard]] std::string describe(VerifyReport const& verified, double seconds);
[[nodiscard]] std::string describe(Reread const& reread);

/// An error of all ranks alike, told once. Collective; `verified` is the same on all ranks.
void throw_if_bad(Communicator& world, VerifyReport const& verified);

}  // namespace rankslice::cli
