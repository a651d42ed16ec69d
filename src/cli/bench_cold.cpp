#include <fmt/format.h>

#include "cli/bench_steps.hpp"

namespace rankslice::cli {

namespace {

std::unique_ptr<ReadEngine> pread_engine(std::span<std::byte>) { return make_pread_engine(); }

std::unique_ptr<ReadEngine> uring_engine(std::span<std::byte> memory) {
  return make_uring_engine(kReadsUnderWay, memory);
}

/// What the device gives to reads of 1 MiB.
Run direct_run(BenchSubject& subject) {
  auto const memory = std::make_shared<Buffer>();
  auto* const make_engine = subject.has_uring ? uring_engine : pread_engine;
  return {.name = "O_DIRECT",
          .meaning = subject.has_uring
                         ? fmt::format("the same past the page cache, {} reads at once for each thread", kReadsUnderWay)
                         : "the same past the page cache, one read after the other",
          .bytes = subject.direct->bytes(),
          .work =
              [=, &subject] {
                *memory = allocate_small_pages(subject.direct->memory_bytes());
                subject.direct->read_by(make_engine, subject.alive, memory->span());
              },
          .clean = [memory] { *memory = {}; }};
}

}  // namespace

void make_cold(BenchSubject const& subject, Step& step) {
  for (auto& run : step.runs) {
    run.prepare = [plain = subject.plain, before = std::move(run.prepare)] {
      if (before) before();
      plain->drop_page_cache();
    };
  }
  step.takes_memory = 2;
  step.left_in_cache = [plain = subject.plain] { return plain->left_in_page_cache(); };
}

Step read_step(BenchSubject& subject) {
  Step step{.name = "read", .runs = {}, .comparisons = {}};
  auto const add = [&](std::string name, std::string meaning, std::function<void()> work) {
    step.runs.push_back({.name = std::move(name),
                         .meaning = std::move(meaning),
                         .bytes = subject.plain->bytes(),
                         .work = std::move(work)});
  };
  auto const by_engine = [&](std::shared_ptr<PlainReader const> files, auto* make_engine) {
    return [&subject, files = std::move(files), make_engine] { files->read_by(make_engine, subject.alive); };
  };
  add("engine, pread", "the owned extents into memory that is used again, by the engine that reads one after the other",
      by_engine(subject.plain, pread_engine));
  if (subject.has_uring) {
    add("engine, io_uring", "the same, many at once through the page cache", by_engine(subject.plain, uring_engine));
  }
  if (subject.has_uring && subject.direct) {
    add("engine, direct", "the same past the page cache", by_engine(subject.direct, uring_engine));
  }
  auto const limit = step.runs.size();
  add("pread, used memory", "the same by plain `pread`", [&subject] { subject.plain->warm_page_cache(subject.alive); });
  for (std::size_t i = 0; i < limit; ++i) step.comparisons.push_back({i, limit});
  return step;
}

Step read_cold_step(BenchSubject& subject) {
  auto step = read_step(subject);
  step.name = "read-cold";
  make_cold(subject, step);
  return step;
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
    step.runs.push_back(direct_run(subject));
  }
  for (std::size_t i = 0; i < ours; ++i) {
    for (auto limit = ours; limit < step.runs.size(); ++limit) step.comparisons.push_back({i, limit});
  }
  make_cold(subject, step);
  return step;
}

}  // namespace rankslice::cli
