// Blocks that are read before they are asked for: which bytes come from them, and which are left to the reader behind.

#include "io/read_ahead.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "rankslice/error.hpp"

#include "io/direct_file.hpp"
#include "io/positional.hpp"
#include "support/memory_reader.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr BlockLimits kLimits{.alignment = 4_KiB, .most_gap = 4_KiB, .bytes = 16_KiB};
constexpr std::uint64_t kFileBytes = 500'123;

/// How an engine misbehaves, as systems may.
struct Faults {
  std::uint32_t most = UINT32_MAX;  ///< Bytes that a read brings.
  unsigned fails_every = 0;         ///< Every n-th read ends with `error`.
  int error = EIO;
  bool last_first = false;  ///< What was started last ends first.
  unsigned refused = 0;     ///< Reads that it does not start.
};

/// Reads a file in memory; and misbehaves. Knows what was asked of it.
class ScriptedEngine final : public ReadEngine {
 public:
  struct Log {
    std::vector<Range> started{};
    std::size_t most_at_once = 0;
    std::size_t ended_late = 0;  // that were under way when the engine went
  };
  ScriptedEngine(std::span<std::byte const> bytes, Faults faults, Log& log)
      : bytes_(bytes), faults_(faults), log_(log) {}
  /// The kernel may write to the memory of a read until then.
  ~ScriptedEngine() override {
    for (auto const& read : under_way_) std::fill_n(read.to, read.size, std::byte{0});
    log_.ended_late = under_way_.size();
  }
  ScriptedEngine(ScriptedEngine const&) = delete;
  ScriptedEngine& operator=(ScriptedEngine const&) = delete;

  void start(EngineRead const& read) override {
    if (faults_.refused > 0) {
      --faults_.refused;
      throw IoError(ExitCode::io, "takes no reads");
    }
    log_.started.push_back({read.offset, read.offset + read.size});
    under_way_.push_back(read);
    log_.most_at_once = std::max(log_.most_at_once, under_way_.size());
  }
  EngineCompletion wait() override {
    auto const next = faults_.last_first ? under_way_.end() - 1 : under_way_.begin();
    auto const read = *next;
    under_way_.erase(next);
    if (faults_.fails_every != 0 && ++ended_ % faults_.fails_every == 0) return {read.tag, -faults_.error};
    auto const offset = std::min<std::uint64_t>(read.offset, bytes_.size());
    auto const part =
        bytes_.subspan(offset, std::min<std::uint64_t>({read.size, faults_.most, bytes_.size() - offset}));
    std::ranges::copy(part, read.to);
    return {read.tag, std::ssize(part)};
  }

 private:
  std::span<std::byte const> bytes_;
  Faults faults_;
  Log& log_;
  std::vector<EngineRead> under_way_;
  unsigned ended_ = 0;
};

/// A file of random bytes, read ahead for some requests.
class AheadOfRequests {
 public:
  explicit AheadOfRequests(std::vector<Range> requests, Faults faults = {}, BlockLimits const& limits = kLimits)
      : requests_(std::move(requests)) {
    std::vector<Extent> extents;
    for (auto const& range : requests_) extents.push_back({0, range});
    ahead_.emplace(
        plan_blocks(extents, limits), [](std::uint32_t) { return UniqueFd(); },
        [&](unsigned, std::span<std::byte>) { return std::make_unique<ScriptedEngine>(bytes_, faults, log_); });
    auto behind = std::make_unique<test::MemoryReader>(bytes_);
    behind_ = behind.get();
    reader_.emplace(std::move(behind), 0, *ahead_);
  }

  void ask(Range wanted) {
    test::Bytes out(wanted.size());
    reader_->read(out, wanted.begin);
    ASSERT_TRUE(std::ranges::equal(out, std::span(bytes_).subspan(wanted.begin, wanted.size())))
        << wanted.begin << " to " << wanted.end;
  }
  void ask_all() {
    for (auto const& range : requests_) ask(range);
  }
  /// From now on the reader behind cannot read this byte.
  void damage(std::uint64_t offset) { behind_->fail_at(offset); }
  [[nodiscard]] std::vector<Range> const& read_behind() const { return behind_->reads(); }
  [[nodiscard]] ScriptedEngine::Log const& log() const { return log_; }
  [[nodiscard]] ReadAhead const& ahead() const { return *ahead_; }
  void stop() { ahead_.reset(); }

 private:
  test::Bytes const bytes_ = test::random_bytes(kFileBytes, 1);
  std::vector<Range> requests_;
  ScriptedEngine::Log log_;
  test::MemoryReader* behind_ = nullptr;
  std::optional<ReadAhead> ahead_;
  std::optional<AheadReader> reader_;
};

std::vector<Range> in_steps(std::uint64_t begin, std::uint64_t end, std::uint64_t step) {
  std::vector<Range> ranges;
  for (; begin < end; begin += step) ranges.push_back({begin, std::min(begin + step, end)});
  return ranges;
}

TEST(ReadingAhead, ServesEveryRequestFromBlocksThatAreReadOnceInOrder) {
  AheadOfRequests file(in_steps(100, kFileBytes, 10'000));
  file.ask_all();
  EXPECT_THAT(file.read_behind(), IsEmpty());
  EXPECT_EQ(file.log().started, in_steps(0, (kFileBytes / 4096 + 1) * 4096, 16_KiB));
  EXPECT_EQ(file.ahead().left_out(), 0U);
}

TEST(ReadingAhead, KeepsEightBlocksUnderWay) {
  AheadOfRequests file(in_steps(0, kFileBytes, 16_KiB));
  file.ask({0, 1});
  EXPECT_EQ(file.log().most_at_once, 8U);
  EXPECT_EQ(file.log().started.size(), 8U);
  file.ask({1, 16_KiB});
  EXPECT_EQ(file.log().started.size(), 9U) << "for each that is used up one more";
}

TEST(ReadingAhead, ReadsWhatNobodySpokeOfFromTheReaderBehind) {
  AheadOfRequests file({{40'000, 60'000}});
  file.ask({10'000, 90'000});
  EXPECT_THAT(file.read_behind(), ElementsAre(Range{10'000, 36'864}, Range{61'440, 90'000}));
}

TEST(ReadingAhead, ReadsWhatIsAskedForOnceMoreFromTheReaderBehind) {
  AheadOfRequests file({{0, 8_KiB}});
  file.ask({0, 8_KiB});
  file.ask({100, 200});
  EXPECT_THAT(file.read_behind(), ElementsAre(Range{100, 200}));
}

TEST(ReadingAhead, LeavesABlockToTheReaderBehindWhenAllMemoryWaitsToBeAskedFor) {
  AheadOfRequests file(in_steps(0, kFileBytes, 16_KiB));
  file.ask({20 * 16_KiB, 20 * 16_KiB + 5});  // while the first eight lie there
  EXPECT_THAT(file.read_behind(), ElementsAre(Range{20 * 16_KiB, 20 * 16_KiB + 5}));
  EXPECT_EQ(file.ahead().left_out(), 16_KiB);
  file.ask_all();
  auto started = file.log().started;
  std::ranges::sort(started);
  EXPECT_EQ(std::ranges::adjacent_find(started), started.end()) << "no block twice";
}

TEST(ReadingAhead, StartsABlockThatIsWantedBeforeItsTurn) {
  AheadOfRequests file({{0, 16_KiB}, {100'000, 100'100}, {200'000, 200'100}});
  file.ask({200'000, 200'100});
  file.ask({100'000, 100'100});
  file.ask({0, 16_KiB});
  EXPECT_THAT(file.read_behind(), IsEmpty());
}

TEST(ReadingAhead, OpensEachFileOnceWhenItIsItsTurnAndClosesItWithItsLastBlock) {
  test::TempDir const dir;
  std::vector<std::string> paths;
  std::vector<Extent> extents;
  auto const bytes = test::random_bytes(14 * 16_KiB, 2);
  for (std::uint32_t i = 0; i < 3; ++i) {
    paths.push_back(dir.file(std::to_string(i)));
    std::ofstream(paths.back(), std::ios::binary).write(reinterpret_cast<char const*>(bytes.data()), std::ssize(bytes));
    extents.push_back({i, {0, bytes.size()}});
  }
  std::vector<std::uint32_t> opened;
  std::vector<int> fds;
  ReadAhead ahead(
      plan_blocks(extents, kLimits),
      [&](std::uint32_t file) {
        opened.push_back(file);
        auto fd = open_regular(paths[file]);
        fds.push_back(fd.get());
        return fd;
      },
      [](unsigned, std::span<std::byte>) { return make_pread_engine(); });
  test::Bytes out(bytes.size());
  for (std::uint32_t file = 0; file < 3; ++file) {
    EXPECT_LE(opened.size(), file + 1U);
    for (std::uint64_t at = 0; at < out.size();) at += ahead.serve(file, std::span(out).subspan(at), at);
    EXPECT_EQ(out, bytes);
    EXPECT_EQ(::fcntl(fds[file], F_GETFD), -1) << "still open";
  }
  EXPECT_THAT(opened, ElementsAre(0, 1, 2));
}

TEST(ReadingAhead, GivesTheRightBytesWhateverAnEngineDoes) {
  std::mt19937_64 random(3);
  for (auto const& faults :
       {Faults{.most = 5000}, Faults{.most = 1}, Faults{.fails_every = 3}, Faults{.fails_every = 2, .error = EAGAIN},
        Faults{.fails_every = 1, .error = EINVAL}, Faults{.last_first = true},
        Faults{.most = 9000, .fails_every = 5, .error = EINTR, .last_first = true}}) {
    auto requests = in_steps(7, kFileBytes, 3000 + random() % 30'000);
    if (random() % 2 == 0) std::ranges::shuffle(requests, random);
    AheadOfRequests file(requests, faults);
    file.ask_all();
    for (int trial = 0; trial < 50; ++trial) {
      auto const begin = random() % kFileBytes;
      file.ask({begin, begin + random() % (kFileBytes - begin)});
    }
  }
}

TEST(ReadingAhead, OfAFileThatEndsEarlyIsTheErrorOfTheReaderBehind) {
  AheadOfRequests file({{0, kFileBytes + 10'000}});
  file.ask({0, kFileBytes - 5});
  EXPECT_THROW(file.ask({kFileBytes - 5, kFileBytes + 1}), FormatError);
}

// Each try may take a disk half a minute.
TEST(ReadingAhead, TriesWhatADiskCannotReadOnceMoreAndNoMore) {
  AheadOfRequests file({{0, kFileBytes}}, {.fails_every = 1});
  file.damage(50'000);
  EXPECT_THROW(file.ask({40'000, 60'000}), IoError);
  EXPECT_EQ(std::ranges::count_if(file.read_behind(), [](Range range) { return range.end > 50'000; }), 1);
}

TEST(ReadingAhead, ThatCannotOpenAFileSaysSoToWhoAsks) {
  std::vector<Extent> const extents{{0, {0, 100}}};
  ReadAhead ahead(
      plan_blocks(extents, kLimits), [](std::uint32_t) -> UniqueFd { throw IoError(ExitCode::io, "gone", "a"); },
      [](unsigned, std::span<std::byte>) { return make_pread_engine(); });
  test::Bytes out(10);
  EXPECT_THROW((void)ahead.serve(0, out, 0), IoError);
  EXPECT_THROW((void)ahead.serve(0, out, 0), IoError) << "and again";
}

TEST(ReadingAhead, LosesNoMemoryToBlocksThatCouldNotBeStarted) {
  constexpr auto kRefused = 20U;  // more than there is memory for
  AheadOfRequests file(in_steps(0, kFileBytes, 16_KiB), {.refused = kRefused});
  for (unsigned i = 0; i < kRefused; ++i) EXPECT_THROW(file.ask({0, 1}), IoError);
  file.ask_all();
  EXPECT_EQ(file.log().most_at_once, 8U);
  EXPECT_THAT(file.read_behind(), IsEmpty());
}

TEST(ReadingAhead, KeepsItsMemoryUntilNoReadIsUnderWay) {
  AheadOfRequests file(in_steps(0, kFileBytes, 16_KiB));
  file.ask({0, 1});
  file.stop();
  EXPECT_EQ(file.log().ended_late, 7U);
}

TEST(ReadingAhead, OfOneFileByManyThreadsGivesEachItsBytes) {
  test::TempDir const dir;
  auto const path = dir.file("data");
  auto const bytes = test::random_bytes(kFileBytes, 5);
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<char const*>(bytes.data()), std::ssize(bytes));
  auto const make_engine = [](unsigned depth, std::span<std::byte> memory) {
    return why_no_uring_engine().empty() ? make_uring_engine(depth, memory) : make_pread_engine();
  };
  constexpr std::size_t kThreads = 4;
  std::vector<test::Bytes> got(kThreads, test::Bytes(kFileBytes));
  std::vector<std::jthread> threads;
  for (auto& out : got) {
    threads.emplace_back([&] {
      std::vector<Extent> const extents{{0, {0, kFileBytes}}};
      ReadAhead ahead(
          plan_blocks(extents, kLimits), [&](std::uint32_t) { return open_regular(path); }, make_engine);
      AheadReader(open_reader(path), 0, ahead).read(out, 0);
      if (ahead.left_out() != 0) out.clear();
    });
  }
  threads.clear();
  for (auto const& out : got) EXPECT_EQ(out, bytes);
}

}  // namespace
}  // namespace rankslice
