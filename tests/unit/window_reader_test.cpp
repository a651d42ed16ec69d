// What is read of a file, and how often, when it is known beforehand what will be asked for.

#include "io/window_reader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "rankslice/error.hpp"

#include "support/memory_reader.hpp"
#include "support/raw_checkpoint.hpp"

namespace rankslice {
namespace {

using test::MemoryReader;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kWindow = 64;

/// A file of random bytes behind windows, and what was read of it.
class WatchedFile {
 public:
  WatchedFile(std::uint64_t bytes, std::vector<Range> const& runs, ReadWindows& windows)
      : bytes_(test::random_bytes(bytes, bytes)) {
    auto file = std::make_unique<MemoryReader>(bytes_);
    file_ = file.get();
    reader_ = std::make_unique<WindowReader>(std::move(file), runs, windows);
  }

  /// Ask for bytes, which must be the right ones.
  void ask(Range wanted) {
    std::vector<std::byte> out(wanted.size());
    reader_->read(out, wanted.begin);
    auto const expected = std::span(bytes_).subspan(wanted.begin, wanted.size());
    EXPECT_TRUE(std::ranges::equal(out, expected)) << wanted.begin << " to " << wanted.end;
  }
  [[nodiscard]] std::vector<Range> const& reads() const { return file_->reads(); }
  [[nodiscard]] MemoryReader& file() { return *file_; }

 private:
  std::vector<std::byte> bytes_;
  MemoryReader* file_ = nullptr;
  std::unique_ptr<WindowReader> reader_;
};

class Windows : public testing::Test {
 protected:
  ReadWindows windows_{kWindow};
};

TEST_F(Windows, ServeSmallRequestsThatTouchFromOneRead) {
  WatchedFile file(100, {{10, 40}}, windows_);
  file.ask({10, 20});
  file.ask({20, 21});
  file.ask({21, 40});
  EXPECT_THAT(file.reads(), ElementsAre(Range{10, 40}));
}

TEST_F(Windows, HoldNoMoreThanTheirCapacity) {
  WatchedFile file(200, {{0, 150}}, windows_);
  for (std::uint64_t i = 0; i < 150; i += 10) file.ask({i, i + 10});
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 64}, Range{64, 128}, Range{128, 150}));
}

TEST_F(Windows, LeaveRequestsOfHalfAWindowToThemselves) {
  WatchedFile file(200, {{0, 104}}, windows_);
  file.ask({0, 32});
  file.ask({32, 102});
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 32}, Range{32, 102}));
  file.ask({102, 103});
  file.ask({103, 104});
  EXPECT_THAT(file.reads().back(), (Range{102, 104}));
}

TEST_F(Windows, GiveALargeRequestWhatTheyHoldOfIt) {
  WatchedFile file(200, {{0, 104}}, windows_);
  file.ask({0, 20});
  file.ask({20, 104});
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 64}, Range{64, 104}));
}

TEST_F(Windows, NeverReadAcrossAGap) {
  WatchedFile file(100, {{10, 20}, {21, 30}, {31, 50}}, windows_);
  for (std::uint64_t i = 10; i < 50; i += 5) {
    if (i != 20 && i != 30) file.ask({i, i + 5});
    if (i == 20 || i == 30) file.ask({i + 1, i + 5});
  }
  EXPECT_THAT(file.reads(), ElementsAre(Range{10, 20}, Range{21, 30}, Range{31, 50}));
}

// As scales are, which are asked for before the weight that they follow.
TEST_F(Windows, AreFilledFromTheFirstByteNotRead) {
  WatchedFile file(100, {{0, 60}}, windows_);
  file.ask({25, 30});
  file.ask({0, 25});
  file.ask({55, 60});
  file.ask({30, 55});
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 60}));
}

TEST_F(Windows, LetWhatTheyDoNotReachBeReadAloneAndNotAgain) {
  WatchedFile file(200, {{0, 130}}, windows_);
  file.ask({100, 104});
  file.ask({0, 50});
  file.ask({50, 60});
  file.ask({60, 100});
  file.ask({104, 120});
  file.ask({120, 130});
  EXPECT_THAT(file.reads(), ElementsAre(Range{100, 104}, Range{0, 50}, Range{50, 100}, Range{104, 130}));
}

TEST_F(Windows, GoOnInAnotherWhileOneHasBytesThatNobodyHasAskedForYet) {
  WatchedFile file(200, {{0, 100}}, windows_);
  file.ask({0, 10});
  file.ask({70, 80});
  file.ask({10, 70});  // of both
  file.ask({80, 100});
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 64}, Range{64, 100}));
}

// As all scales of a file may stand before all of its weights.
TEST_F(Windows, FollowTwoPlacesOfAFile) {
  WatchedFile file(500, {{0, 20}, {200, 300}}, windows_);
  for (std::uint64_t i = 0; i < 10; ++i) {
    file.ask({i * 2, i * 2 + 2});
    file.ask({200 + i * 10, 200 + i * 10 + 10});
  }
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 20}, Range{200, 264}, Range{264, 300}));
}

TEST_F(Windows, AreSharedByFilesThatDoNotTakeThemFromEachOther) {
  std::vector<Range> const runs{{0, 40}};
  WatchedFile a(100, runs, windows_), b(100, runs, windows_), c(100, runs, windows_), d(100, runs, windows_);
  for (auto* const file : {&a, &b, &c, &d}) file->ask({0, 10});
  for (auto* const file : {&a, &b, &c, &d}) file->ask({10, 25});
  for (auto* const file : {&a, &b, &c, &d}) file->ask({25, 40});
  for (auto* const file : {&a, &b, &c}) EXPECT_THAT(file->reads(), ElementsAre(Range{0, 40}));
  EXPECT_THAT(d.reads(), ElementsAre(Range{0, 10}, Range{10, 25}, Range{25, 40})) << "for which none was free";
}

TEST_F(Windows, ReadWhatNobodySpokeOfAsItComes) {
  WatchedFile file(100, {{20, 40}}, windows_);
  for (auto const wanted : {Range{0, 10}, Range{10, 30}, Range{30, 50}, Range{20, 40}, Range{20, 40}}) file.ask(wanted);
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 10}, Range{10, 30}, Range{30, 50}, Range{20, 40}, Range{20, 40}));
}

TEST_F(Windows, HoldNothingAfterAnErrorAndAreFreeForOthers) {
  WatchedFile damaged(100, {{0, 40}}, windows_), good(100, {{0, 40}}, windows_);
  damaged.file().fail_at(30);
  for (int i = 0; i < 2; ++i) EXPECT_THROW(damaged.ask({0, 10}), IoError);
  EXPECT_THAT(damaged.reads(), ElementsAre(Range{0, 40}, Range{0, 40}));
  for (auto const wanted : {Range{0, 10}, Range{10, 40}}) good.ask(wanted);
  EXPECT_THAT(good.reads(), ElementsAre(Range{0, 40}));
}

TEST_F(Windows, ForgetTheBytesOfAReaderThatIsGone) {
  WatchedFile(100, {{0, 40}}, windows_).ask({0, 10});
  WatchedFile file(101, {{0, 40}}, windows_);
  for (auto const wanted : {Range{10, 20}, Range{0, 10}, Range{20, 40}}) file.ask(wanted);
  EXPECT_THAT(file.reads(), ElementsAre(Range{0, 40}));
}

TEST_F(Windows, OfAFileThatIsCutIsBadData) {
  WatchedFile file(30, {{0, 40}}, windows_);
  try {
    file.ask({0, 10});
    ADD_FAILURE() << "nothing was thrown";
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("ends at 30"));
  }
}

// ---- any runs, any order ----

struct Case {
  std::uint64_t bytes = 0;
  std::vector<Range> runs, requests;  // requests: the runs in parts, in order
};

Case random_case(std::mt19937& random) {
  auto const up_to = [&](std::uint64_t most) { return std::uniform_int_distribution<std::uint64_t>(1, most)(random); };
  Case made{.bytes = up_to(5), .runs = {}, .requests = {}};
  for (auto runs = up_to(6); runs > 0; --runs) {
    auto const begin = made.bytes;
    auto const largest = up_to(2) == 1 ? kWindow / 2 - 1 : 2 * kWindow;
    for (auto parts = up_to(12); parts > 0; --parts) {
      auto const size = up_to(largest);
      made.requests.push_back({made.bytes, made.bytes + size});
      made.bytes += size;
    }
    made.runs.push_back({begin, made.bytes});
    made.bytes += up_to(20);
  }
  return made;
}

/// How often each byte was read.
std::vector<int> counts(std::uint64_t bytes, std::vector<Range> const& reads) {
  std::vector<int> counts(bytes);
  for (auto const& read : reads) {
    for (auto i = read.begin; i < read.end; ++i) ++counts[i];
  }
  return counts;
}

TEST_F(Windows, ReadEveryWantedByteOnceAndNoOtherInAnyOrder) {
  std::mt19937 random(5);
  for (int i = 0; i < 2'000; ++i) {
    auto made = random_case(random);
    std::ranges::shuffle(made.requests, random);
    WatchedFile file(made.bytes, made.runs, windows_);
    for (auto const& wanted : made.requests) file.ask(wanted);
    ASSERT_EQ(counts(made.bytes, file.reads()), counts(made.bytes, made.runs)) << "case " << i;
    ASSERT_LE(file.reads().size(), made.requests.size()) << "case " << i;
  }
}

TEST_F(Windows, ReadAsRarelyAsTheirCapacityAllowsWhenSmallRequestsComeInOrder) {
  std::mt19937 random(6);
  for (int i = 0; i < 500; ++i) {
    auto const made = random_case(random);
    std::vector<Range> parts;  // of less than half a window
    for (auto const& [begin, end] : made.requests) {
      for (auto at = begin; at < end; at += 31) parts.push_back({at, std::min(end, at + 31)});
    }
    std::uint64_t fewest = 0;
    for (auto const& run : made.runs) fewest += (run.size() + kWindow - 1) / kWindow;
    WatchedFile file(made.bytes, made.runs, windows_);
    for (auto const& wanted : parts) file.ask(wanted);
    ASSERT_EQ(file.reads().size(), fewest) << "case " << i;
  }
}

}  // namespace
}  // namespace rankslice
