#include "cli/bench_measure.hpp"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <span>

#include "rankslice/error.hpp"

#include "cli/bench_memory.hpp"

namespace rankslice::cli {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// A line of /proc/self/status that is in kB; 0 when it is not there.
std::uint64_t status_bytes(std::string const& name) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::uint64_t kilobytes = 0;
    if (word == name + ":" && status >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

/// Let VmHWM begin anew. Kernels without page monitoring cannot.
bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return file.good();
}

/// Looks at the resident memory around the work of one run.
class MemoryWatch {
 public:
  explicit MemoryWatch(Run const& run) : memory_of_(run.memory_of), possible_(run.keeps_memory) {
    seen_.kept = run.bytes_kept;
  }

  void before_work() {
    if (!possible_) return;
    ::malloc_trim(0);  // what an earlier run has freed is not this one's
    if (memory_of_) {
      auto const process = memory_of_();
      seen_.before = std::max(seen_.before, own_memory_of(process));
      own_peak_ = std::make_unique<MemoryPeak>(process);
      return;
    }
    possible_ = reset_peak();
    seen_.before = std::max(seen_.before, status_bytes("VmRSS"));
  }
  void after_work() {
    if (!possible_) return;
    seen_.peak = std::max(seen_.peak, own_peak_ ? own_peak_->bytes() : status_bytes("VmHWM"));
    own_peak_.reset();
  }
  /// By rank, on rank 0. Collective.
  [[nodiscard]] std::optional<std::vector<ResidentMemory>> of_all(Communicator& world) const {
    std::vector<std::uint64_t> possible{possible_ ? 1U : 0U};
    world.all_reduce(possible, Reduce::min);
    if (possible.front() == 0) return std::nullopt;
    std::vector<ResidentMemory> all;
    for (auto const& bytes : world.gather(std::as_bytes(std::span(&seen_, 1)), 0)) {
      std::memcpy(&all.emplace_back(), bytes.data(), sizeof(ResidentMemory));
    }
    return all;
  }

 private:
  std::function<::pid_t()> memory_of_;
  std::unique_ptr<MemoryPeak> own_peak_;
  bool possible_;
  ResidentMemory seen_;
};

void wait_for_all(Communicator& world) {
  std::vector<std::uint64_t> nothing{0};
  world.all_reduce(nothing, Reduce::max);
}

/// Seconds of this rank.
double time_work(Run const& run, Communicator& world) {
  double seconds = 0;
  auto const timed = [&] {
    auto const start = Clock::now();
    run.work();
    seconds = seconds_since(start);
  };
  run.collective ? timed() : on_every_rank(world, timed);
  return seconds;
}

double slowest(double seconds, Communicator& world) {
  std::vector<std::uint64_t> nanoseconds{static_cast<std::uint64_t>(seconds * 1e9)};
  world.all_reduce(nanoseconds, Reduce::max);
  return static_cast<double>(nanoseconds.front()) / 1e9;
}

/// Of the rank that has most; nothing where one has none.
std::optional<std::uint64_t> most(std::optional<std::uint64_t> mine, Communicator& world) {
  constexpr auto kUnknown = std::numeric_limits<std::uint64_t>::max();
  std::vector<std::uint64_t> all{mine.value_or(kUnknown)};
  world.all_reduce(all, Reduce::max);
  if (all.front() == kUnknown) return std::nullopt;
  return all.front();
}

void run_once(Step const& step, Run const& run, MemoryWatch& memory, Communicator& world, RunResult& result,
              std::function<void()> const& alive) {
  on_every_rank(world, [&] {
    if (run.prepare) run.prepare();
  });
  std::optional<std::uint64_t> left;
  on_every_rank(world, [&] {
    if (step.takes_memory > 0) call_in_memory(step.takes_memory * run.bytes, alive);
    memory.before_work();
    if (step.left_in_cache) left = step.left_in_cache();  // after every rank has let it forget the files
  });
  if (step.left_in_cache) left = most(left, world);
  wait_for_all(world);
  auto const seconds = slowest(time_work(run, world), world);
  on_every_rank(world, [&] {
    memory.after_work();
    if (run.clean) run.clean();
  });
  result.seconds.push_back(seconds);
  if (step.left_in_cache) result.left_in_cache.push_back(left);
}

void leave_out(StepResult& result, std::size_t which, std::string why) {
  result.left_out.push_back({.name = result.runs[which].name, .why = std::move(why)});
  result.runs.erase(result.runs.begin() + static_cast<std::ptrdiff_t>(which));
  std::erase_if(result.comparisons, [=](Comparison c) { return c.ours == which || c.limit == which; });
  for (auto& [ours, limit] : result.comparisons) {
    if (ours > which) --ours;
    if (limit > which) --limit;
  }
}

}  // namespace

double RunResult::min() const { return *std::ranges::min_element(seconds); }

double RunResult::median() const {
  auto sorted = seconds;
  std::ranges::sort(sorted);
  auto const middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

std::string failure_of(std::function<void()> const& step) {
  try {
    step();
    return {};
  } catch (IoError const& error) {
    if (error.code == ExitCode::input_missing) throw;
    return error.what();
  } catch (VerifyError const& error) {
    return error.what();
  }
}

StepResult measure(Step const& step, int repeats, Communicator& world, NextRun const& next) {
  StepResult result{
      .name = step.name, .runs = {}, .comparisons = step.comparisons, .is_cold = step.left_in_cache != nullptr};
  std::vector<MemoryWatch> memory;
  std::uint64_t total = 0;
  for (auto const& run : step.runs) {
    std::vector<std::uint64_t> bytes{run.bytes};
    world.all_reduce(bytes, Reduce::sum);
    result.runs.push_back({.name = run.name,
                           .meaning = run.meaning,
                           .bytes = bytes.front(),
                           .count = run.count,
                           .seconds = {},
                           .keeps_memory = run.keeps_memory});
    memory.emplace_back(run);
    total += run.bytes * static_cast<std::uint64_t>(repeats);
  }
  auto const runs = step.runs.size();
  std::vector<std::string> why_not(runs);
  std::uint64_t done = 0;
  for (std::size_t i = 0; i < runs * static_cast<std::size_t>(repeats); ++i) {
    auto const which = (i / runs + i % runs) % runs;
    auto const& run = step.runs[which];
    auto const alive = [&] { next(done, total); };
    on_every_rank(world, alive);
    auto const once = [&] { run_once(step, run, memory[which], world, result.runs[which], alive); };
    if (!run.is_theirs) once();
    if (run.is_theirs && why_not[which].empty()) {
      why_not[which] = failure_of(once);
      if (!why_not[which].empty()) on_every_rank(world, run.end);
    }
    done += run.bytes;
  }
  for (std::size_t i = 0; i < runs; ++i) {
    if (step.runs[i].keeps_memory) result.runs[i].memory = memory[i].of_all(world);
  }
  for (auto i = runs; i-- > 0;) {
    if (!why_not[i].empty()) leave_out(result, i, std::move(why_not[i]));
  }
  return result;
}

}  // namespace rankslice::cli
