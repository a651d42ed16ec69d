#include "cli/bench_measure.hpp"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <span>

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
  explicit MemoryWatch(Run const& run) : elsewhere_(run.memory_elsewhere), possible_(run.keeps_memory) {
    seen_.kept = run.bytes_kept;
  }

  void before_work() {
    if (!possible_ || elsewhere_) return;
    ::malloc_trim(0);  // what an earlier run has freed is not this one's
    possible_ = reset_peak();
    seen_.before = std::max(seen_.before, status_bytes("VmRSS"));
  }
  void after_work() {
    if (!possible_) return;
    if (!elsewhere_) {
      seen_.peak = std::max(seen_.peak, status_bytes("VmHWM"));
    } else if (auto const told = elsewhere_()) {
      seen_ = {
          .kept = told->kept, .before = std::max(seen_.before, told->before), .peak = std::max(seen_.peak, told->peak)};
    } else {
      possible_ = false;
    }
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
  std::function<std::optional<ResidentMemory>()> elsewhere_;
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

double run_once(Run const& run, bool takes_memory, MemoryWatch& memory, Communicator& world) {
  on_every_rank(world, [&] {
    if (run.prepare) run.prepare();
  });
  on_every_rank(world, [&] {
    if (takes_memory) call_in_memory(2 * run.bytes);
    memory.before_work();
  });
  wait_for_all(world);
  auto const seconds = slowest(time_work(run, world), world);
  on_every_rank(world, [&] {
    memory.after_work();
    if (run.clean) run.clean();
  });
  return seconds;
}

}  // namespace

double RunResult::min() const { return *std::ranges::min_element(seconds); }

double RunResult::median() const {
  auto sorted = seconds;
  std::ranges::sort(sorted);
  auto const middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

StepResult measure(Step const& step, int repeats, Communicator& world, NextRun const& next) {
  StepResult result{.name = step.name, .runs = {}, .comparisons = step.comparisons};
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
  std::uint64_t done = 0;
  for (std::size_t i = 0; i < runs * static_cast<std::size_t>(repeats); ++i) {
    auto const which = (i / runs + i % runs) % runs;
    on_every_rank(world, [&] { next(done, total); });
    result.runs[which].seconds.push_back(run_once(step.runs[which], step.takes_memory, memory[which], world));
    done += step.runs[which].bytes;
  }
  for (std::size_t i = 0; i < runs; ++i) {
    if (step.runs[i].keeps_memory) result.runs[i].memory = memory[i].of_all(world);
  }
  if (step.left_in_cache) {
    std::vector<std::uint64_t> left{step.left_in_cache()};
    world.all_reduce(left, Reduce::sum);
    result.left_in_cache = left.front();
  }
  return result;
}

}  // namespace rankslice::cli
