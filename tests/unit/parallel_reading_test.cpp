#include "parallel_reading.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

#include "rankslice/error.hpp"
#include "rankslice/load.hpp"

#include "support/faulty_reader.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "verify/rank_tables.hpp"

namespace rankslice {
namespace {

namespace fs = std::filesystem;

/// Those of this process now.
std::ptrdiff_t thread_count() { return std::distance(fs::directory_iterator("/proc/self/task"), {}); }

/// A checkpoint with every kind of tensor, in two files.
class ParallelReading : public testing::TestWithParam<int> {
 protected:
  ParallelReading() {
    test::write_small_checkpoint(dir_.file("checkpoint"));
    source_ = open_checkpoint(dir_.file("checkpoint"));
    for (std::uint32_t i = 0; i < source_->model.parameters.size(); ++i) {
      plan_.push_back({i, source_->model.parameters[i].whole()});
    }
  }

  [[nodiscard]] Digests digest(PieceReading reading) const {
    reading.threads = GetParam();
    return digest_slices(source_->model, plan_, source_->storage, reading);
  }

  /// By the definition, of the bytes of the files.
  void expect_right(Digests const& digests) const {
    auto const raw = test::read_raw_tensors(dir_.file("checkpoint"));
    for (std::size_t i = 0; i < source_->model.tensors.size(); ++i) {
      auto const& tensor = source_->model.tensors[i];
      auto const expected = test::naive_digest(element_bytes(tensor.dtype), tensor.shape, raw.at(tensor.key).bytes);
      EXPECT_THAT(digests.source.of(i), testing::ElementsAreArray(expected)) << tensor.key;
    }
  }

  test::TempDir dir_;
  std::shared_ptr<Checkpoint const> source_;
  std::vector<PlannedSlice> plan_;
};

TEST_P(ParallelReading, DigestsAsTheDefinitionSays) { expect_right(digest({})); }

TEST_P(ParallelReading, DigestsWhatIsHeldAsTheDefinitionSays) {
  auto const state = load(source_, make_mesh(1), MeshCoordinate{}, {.call = {.threads = 1}});
  std::uint64_t done = 0, held = 0;
  for (auto const& [fqn, tensor] : state.tensors) held += tensor.data.bytes;
  CallOptions const call{.threads = GetParam(), .progress = [&](Progress const& progress) { done = progress.done; }};
  expect_right(digest_held(state, call, nullptr));
  EXPECT_EQ(done, held);
}

/// Another reader that notes what is read of its file.
class NotingReader final : public FileReader {
 public:
  using Note = std::function<void(std::string const& path, Range bytes)>;
  NotingReader(std::unique_ptr<FileReader> file, Note note) : file_(std::move(file)), note_(std::move(note)) {}
  [[nodiscard]] std::string const& path() const override { return file_->path(); }
  [[nodiscard]] FileIdentity identity() const override { return file_->identity(); }
  void read(std::span<std::byte> out, std::uint64_t offset) override {
    note_(path(), {offset, offset + out.size()});
    file_->read(out, offset);
  }

 private:
  std::unique_ptr<FileReader> file_;
  Note note_;
};

/// How often each byte of a small file is among some ranges.
std::vector<int> times_read(std::vector<Range> const& ranges) {
  std::vector<int> times;
  for (auto const& range : ranges) {
    if (times.size() < range.end) times.resize(range.end);
    for (auto byte = range.begin; byte < range.end; ++byte) ++times[byte];
  }
  return times;
}

TEST_P(ParallelReading, ReadsEveryByteOnceAndTellsOfIt) {
  std::mutex mutex;
  std::map<std::string, std::vector<Range>> read;
  auto const note = [&](std::string const& path, Range bytes) {
    std::lock_guard const lock(mutex);
    read[path].push_back(bytes);
  };
  std::uint64_t done = 0;
  (void)digest({.done = [&](std::uint64_t bytes) { done += bytes; },
                .make_open =
                    [&] {
                      return [&](std::string const& path) {
                        return std::make_unique<NotingReader>(open_reader(path), note);
                      };
                    }});
  std::map<std::string, std::vector<Range>> wanted;
  for (auto const& piece : source_->storage.pieces) {
    wanted[source_->storage.files[piece.extent.file].path].push_back(piece.extent.bytes);
  }
  std::uint64_t all = 0;
  for (auto const& [path, ranges] : wanted) {
    EXPECT_EQ(times_read(read[path]), times_read(ranges)) << path;
    for (auto const& range : ranges) all += range.size();
  }
  EXPECT_EQ(done, all);
}

TEST_P(ParallelReading, TellsTheCallerHowEachShareWasRead) {
  std::uint64_t all = 0;
  for (auto const& piece : source_->storage.pieces) {
    all += piece.extent.bytes.size() + (piece.scales ? piece.scales->bytes.size() : 0);
  }
  auto const caller = std::this_thread::get_id();
  for (auto const way : {ReadBackend::pread, ReadBackend::direct}) {
    std::vector<ReadPart> parts;
    (void)digest({.how = {.backend = way, .tell = [&](ReadPart const& part) {
                            EXPECT_EQ(std::this_thread::get_id(), caller);
                            parts.push_back(part);
                          }}});
    ASSERT_THAT(parts.size(), testing::AllOf(testing::Ge(1), testing::Le(GetParam())));
    std::uint64_t wanted = 0;
    for (auto const& part : parts) {
      wanted += part.wanted;
      EXPECT_EQ(part.threads, parts.size());
      EXPECT_GE(part.read, part.wanted);
      EXPECT_EQ(part.by_pread, part.by == ReadBackend::pread ? part.wanted : 0);
      EXPECT_NE(part.why, "");
    }
    EXPECT_EQ(wanted, all);
  }
}

TEST_P(ParallelReading, EndsWithTheErrorOfAnyFileAndLeavesNoThread) {
  for (auto const& bad : source_->storage.files) {
    auto const before = thread_count();
    auto const open = [&](std::string const& path) -> std::unique_ptr<FileReader> {
      auto file = open_reader(path);
      if (path != bad.path) return file;
      return std::make_unique<test::FaultyReader>(std::move(file), test::ReadFaults{.fails_at = 0});
    };
    try {
      (void)digest({.make_open = [&] { return open; }});
      ADD_FAILURE() << bad.path;
    } catch (IoError const& error) {
      EXPECT_EQ(error.code, ExitCode::io);
      EXPECT_EQ(error.file, bad.path);
    }
    EXPECT_EQ(thread_count(), before);
  }
}

// With as many threads as there are files or more, each of them has one that fails.
TEST_P(ParallelReading, NamesTheFirstOfSeveralBadFiles) {
  auto const open = [](std::string const& path) {
    return std::make_unique<test::FaultyReader>(open_reader(path), test::ReadFaults{.fails_at = 0});
  };
  try {
    (void)digest({.make_open = [&] { return open; }});
    ADD_FAILURE() << "no error";
  } catch (IoError const& error) {
    EXPECT_EQ(error.file, source_->storage.files.front().path);
  }
}

TEST_P(ParallelReading, EndsWithWhatTheCallerThrowsAndLeavesNoThread) {
  auto const before = thread_count();
  auto const stop = [](std::uint64_t) { throw Interrupted(); };
  EXPECT_THROW((void)digest({.done = stop}), Interrupted);
  EXPECT_EQ(thread_count(), before);
}

TEST_P(ParallelReading, FindsAFileThatChangesMeanwhile) {
  auto const& path = source_->storage.files.back().path;
  auto const open = [&](std::string const& opened) {
    return std::make_unique<NotingReader>(open_reader(opened), [&](std::string const& read, Range) {
      if (read == path) fs::last_write_time(path, fs::file_time_type::clock::now());
    });
  };
  EXPECT_THROW((void)digest({.make_open = [&] { return open; }}), IoError);
}

INSTANTIATE_TEST_SUITE_P(ByThreads, ParallelReading, testing::Values(1, 2, 3, 8, 64));

}  // namespace
}  // namespace rankslice
