#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice::cli {

/// How many of what: `{2924, "tensor"}`.
struct Count {
  std::uint64_t number = 0;
  char const* of = "";
};

/// Resident memory of one rank around a run, the largest of all repeats.
struct ResidentMemory {
  std::uint64_t kept = 0;    ///< What the run leaves behind on purpose.
  std::uint64_t before = 0;  ///< What was resident when it started.
  std::uint64_t peak = 0;
};

/// One thing that is timed, on this rank. The clock runs during `work` only.
struct Run {
  std::string name;
  std::string meaning;        ///< What is inside the clock, for those who read the figures.
  std::uint64_t bytes = 0;    ///< That this rank moves.
  Count count{};              ///< What `work` does many times, where that tells more than bytes.
  bool collective = false;    ///< `work` agrees with the other ranks itself.
  bool keeps_memory = false;  ///< `work` leaves `bytes_kept` of memory behind, and its peak is looked at.
  std::uint64_t bytes_kept = 0;
  std::function<void()> work;
  std::function<void()> prepare{};  ///< Local.
  std::function<void()> clean{};    ///< Local. Not called when `work` fails.
  /// Of a run that keeps memory in another process: what that says, if it can.
  std::function<std::optional<ResidentMemory>()> memory_elsewhere{};
};

/// Which run of a step is held against which.
struct Comparison {
  std::size_t ours = 0;
  std::size_t limit = 0;
};

struct Step {
  std::string name;
  std::vector<Run> runs;
  std::vector<Comparison> comparisons;
  bool takes_memory = false;  ///< From the system, for tensors or the page cache: at most twice what a run moves.
  /// Of cold runs: the most bytes of this rank that were in the page cache all the same when one began.
  std::function<std::uint64_t()> left_in_cache{};
};

struct RunResult {
  std::string name, meaning;
  std::uint64_t bytes = 0;      ///< Of all ranks.
  Count count{};                ///< Of one rank.
  std::vector<double> seconds;  ///< By repeat: the slowest rank's, from a common start.
  bool keeps_memory = false;
  /// By rank, on rank 0, of a run that keeps memory; nothing where the system does not let the peak be reset.
  std::optional<std::vector<ResidentMemory>> memory{};

  [[nodiscard]] double min() const;
  /// The mean of the middle two, of an even number.
  [[nodiscard]] double median() const;
};

struct StepResult {
  std::string name;
  std::vector<RunResult> runs;
  std::vector<Comparison> comparisons;
  std::optional<std::uint64_t> left_in_cache{};  ///< `Step::left_in_cache` of all ranks.

  /// Ours divided by the limit.
  [[nodiscard]] double ratio_of_minima(Comparison which) const {
    return runs[which.ours].min() / runs[which.limit].min();
  }
  [[nodiscard]] double ratio_of_medians(Comparison which) const {
    return runs[which.ours].median() / runs[which.limit].median();
  }
};

/// Called before every run with the bytes of this rank that are done, and those of the whole step. May throw.
using NextRun = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// Time the runs of a step one after the other, all of them in every repeat, each repeat beginning with another one.
/// Collective.
[[nodiscard]] StepResult measure(Step const& step, int repeats, Communicator& world, NextRun const& next);

}  // namespace rankslice::cli
