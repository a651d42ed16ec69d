#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

#include "facts/timeline.hpp"
#include "facts/words.hpp"

namespace rankslice {

/// What tells how far a rank's steady clock is from that of rank 0.
struct RankClock {
  std::string kernel;               ///< Ranks under one kernel have one clock.
  std::vector<std::int64_t> beats;  ///< When it left each of some barriers.
};

/// This rank's clock. Collective.
[[nodiscard]] RankClock measure_clock(Communicator& world);

/// What to subtract from the times of each rank to have them by the clock of rank 0: nothing under its kernel, else the
/// median over the barriers and the ranks of one kernel. Pure.
[[nodiscard]] std::vector<std::int64_t> clock_offsets(std::vector<RankClock> const& clocks);

/// What the trace has of one rank.
struct RankTrace {
  int rank = 0;
  std::string host;
  RankClock clock;
  std::vector<Span> spans;
};

/// In the trace event format of Chrome and Perfetto: a process, and so a row, for each rank, times in microseconds
/// since `start_ns` by the clock of the first one. `about` goes along, for people. Pure.
[[nodiscard]] Json chrome_trace(std::vector<RankTrace> const& ranks, std::int64_t start_ns, Json const& about);

/// Everyone's traces on rank 0, by rank (empty elsewhere). Collective.
[[nodiscard]] std::vector<RankTrace> gather_traces(RankTrace const& mine, Communicator& world);

}  // namespace rankslice
