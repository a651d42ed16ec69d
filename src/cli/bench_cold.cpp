#include <algorithm>

#include "cli/bench_steps.hpp"

namespace rankslice::cli {

void make_cold(BenchSubject const& subject, Step& step) {
  auto const left = std::make_shared<std::uint64_t>(0);
  for (auto& run : step.runs) {
    run.prepare = [left, plain = subject.plain, before = std::move(run.prepare)] {
      if (before) before();
      plain->drop_page_cache();
      *left = std::max(*left, plain->bytes_in_page_cache());
    };
  }
  step.left_in_cache = [left] { return *left; };
}

Step cold_step(BenchSubject& subject) {
  Step step{.name = "cold", .runs = {}, .comparisons = {}};
  auto const load_by = [&](ReadBackend backend, std::string meaning) {
    LoadOptions options{.verify = VerifyLevel::off, .call = subject.call};
    options.call.reading.backend = backend;
    step.runs.push_back(load_run(subject, "load --io " + std::string(name(backend)), std::move(meaning), options));
  };
  load_by(ReadBackend::automatic, "`load --verify off` by what is chosen for files that are not in the page cache");
  load_by(ReadBackend::pread, "the same, reading one block after the other");
  if (subject.has_uring) load_by(ReadBackend::io_uring, "the same, many reads at once through the page cache");
  if (subject.direct) load_by(ReadBackend::direct, "the same past the page cache");
  auto const ours = step.runs.size();
  step.runs.push_back(read_run(subject, subject.plain, "pread, 4 KiB pages",
                               "the owned extents into fresh memory, as they are", allocate_small_pages));
  if (subject.direct) {
    step.runs.push_back(read_run(subject, subject.direct, "pread, O_DIRECT", "the same past the page cache, 1 MiB each",
                                 allocate_small_pages));
  }
  for (std::size_t i = 0; i < ours; ++i) {
    for (auto limit = ours; limit < step.runs.size(); ++limit) step.comparisons.push_back({i, limit});
  }
  make_cold(subject, step);
  return step;
}

}  // namespace rankslice::cli
