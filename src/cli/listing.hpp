#pragma once

#include <string>

#include "cli/job.hpp"

namespace rankslice::cli {

/// Print what every rank of a mesh, or `--rank` alone in detail, reads and holds: a table, or JSON with `--json`.
/// Rank 0 does it.
void list_plan(Job& job, Checkpoint const& source, Mesh const& mesh);

[[nodiscard]] Json mesh_json(Mesh const& mesh);

/// One line for people, and what it says of bytes that were read again.
[[nodiscard]] std::string describe(VerifyReport const& verified, double seconds);
[[nodiscard]] std::string describe(Reread const& reread);

/// An error of all ranks alike, told once. Collective; `verified` is the same on all ranks.
void throw_if_bad(Communicator& world, VerifyReport const& verified);

/// "rank(s) 4" stays short: "1 rank", "4 ranks".
[[nodiscard]] std::string counted(std::uint64_t n, std::string const& singular);

}  // namespace rankslice::cli
