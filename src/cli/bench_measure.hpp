#pragma once

#include <sys/types.h>

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
  /// The process whose own memory is looked at (`own_memory_of`), instead of all that is resident of this one.
  std::function<::pid_t()> memory_of{};
  bool is_theirs = false;       ///< Others' code: when it fails on a rank it is left out, and all else goes on.
  std::function<void()> end{};  ///< Of theirs: nothing of it runs or keeps memory any more. Local.
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
  std::uint64_t takes_memory = 0;  ///< From the system, for tensors and the page cache: times what a run moves.
  /// Of cold runs: what of the files is in the page cache of this host all the same; nothing where it does not tell.
  std::function<std::optional<std::uint64_t>()> left_in_cache{};
};

struct RunResult {
  std::string name, meaning;
  std::uint64_t bytes = 0;      ///< Of all ranks.
  Count count{};                ///< Of one rank.
  std::vector<double> seconds;  ///< By repeat: the slowest rank's, from a common start.
  bool keeps_memory = false;
  /// By rank, on rank 0, of a run that keeps memory; nothing where the system does not let the peak be reset.
  std::optional<std::vector<ResidentMemory>> memory{};
  /// By repeat of a cold run: `Step::left_in_cache` when it began, of the host that had most; nothing where one of them
  /// does not tell.
  std::vector<std::optional<std::uint64_t>> left_in_cache{};

  [[nodiscard]] double min() const;
  /// The mean of the middle two, of an even number.
  [[nodiscard]] double median() const;
};

struct StepResult {
  struct LeftOut {
    std::string name, why;
  };
  std::string name;
  std::vector<RunResult> runs;
  std::vector<Comparison> comparisons;
  bool is_cold = false;
  std::vector<LeftOut> left_out{};  ///< Runs that failed, which are not among the others any more.

  /// Ours divided by the limit.
  [[nodiscard]] double ratio_of_minima(Comparison which) const {
    return runs[which.ours].min() / runs[which.limit].min();
  }
  [[nodiscard]] double ratio_of_medians(Comparison which) const {
    return runs[which.ours].median() / runs[which.limit].median();
  }
};

/// Why a step could not read or found a difference; empty where it did not. @throws all other errors of the step
[[nodiscard]] std::string failure_of(std::function<void()> const& step);

/// Called before every run with the bytes of this rank that are done, and those of the whole step. May throw.
using NextRun = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// Time the runs of a step one after the other, all of them in every repeat, each repeat beginning with another one.
/// Collective.
[[nodiscard]] StepResult measure(Step const& step, int repeats, Communicator& world, NextRun const& next);

}  // namespace rankslice::cli
