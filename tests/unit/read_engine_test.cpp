// What every engine promises: each read that was started ends once, with what there was of its bytes.

#include "io/read_engine.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <thread>

#include "rankslice/error.hpp"

#include "io/direct_file.hpp"
#include "io/positional.hpp"
#include "support/failing_syscall.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using testing::HasSubstr;

constexpr unsigned kDepth = 8;
constexpr std::uint32_t kPart = 4096;
constexpr std::uint64_t kFileBytes = 100 * kPart + 123;

std::string write(test::TempDir const& dir, test::Bytes const& bytes) {
  auto path = dir.file("data");
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<char const*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return path;
}

struct Implementation {
  std::string name;
  bool uring, direct;
};

void PrintTo(Implementation const& implementation, std::ostream* out) { *out << implementation.name; }

class Engines : public testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    if (GetParam().uring && !why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
    auto const path = write(dir_, bytes_);
    fd_ = GetParam().direct ? open_direct(path) : open_regular(path);
    if (!fd_.valid()) GTEST_SKIP() << "this file system lets nobody past its cache";
  }
  [[nodiscard]] std::unique_ptr<ReadEngine> make() {
    std::span const memory(aligned_, kDepth * kPart);
    return GetParam().uring ? make_uring_engine(kDepth, memory) : make_pread_engine();
  }
  [[nodiscard]] EngineRead part(std::uint64_t number) {
    return {.fd = fd_.get(),
            .to = aligned_ + number % kDepth * kPart,
            .size = kPart,
            .offset = number * kPart,
            .tag = number};
  }

  test::TempDir dir_;
  test::Bytes const bytes_ = test::random_bytes(kFileBytes, 1);
  test::Bytes memory_{(kDepth + 1) * kPart};
  std::byte* aligned_ = memory_.data() + (kPart - reinterpret_cast<std::uintptr_t>(memory_.data()) % kPart) % kPart;
  UniqueFd fd_;
};

TEST_P(Engines, BringTheBytesOfEveryReadUnderItsTag) {
  auto const engine = make();
  for (std::uint64_t first = 0; first + kDepth <= 100; first += kDepth) {
    for (auto i = first; i < first + kDepth; ++i) engine->start(part(i));
    std::set<std::uint64_t> ended;
    for (unsigned i = 0; i < kDepth; ++i) {
      auto const [tag, got] = engine->wait();
      EXPECT_TRUE(ended.insert(tag).second) << tag << " ended twice";
      ASSERT_EQ(got, kPart) << tag;
      EXPECT_TRUE(std::ranges::equal(std::span(part(tag).to, kPart), std::span(bytes_).subspan(tag * kPart, kPart)));
    }
    EXPECT_EQ(*ended.begin(), first);
    EXPECT_EQ(*ended.rbegin(), first + kDepth - 1);
  }
}

TEST_P(Engines, TellWhereTheFileEnds) {
  auto const engine = make();
  engine->start(part(101));
  EXPECT_EQ(engine->wait().got, 0) << "behind the last byte";
  engine->start(part(100));
  EXPECT_EQ(engine->wait().got, 123);
}

TEST_P(Engines, TellTheErrorOfARead) {
  auto const engine = make();
  auto bad = part(3);
  bad.fd = -1;
  engine->start(part(2));
  engine->start(bad);
  std::map<std::uint64_t, ::ssize_t> ended;
  for (int i = 0; i < 2; ++i) {
    auto const [tag, got] = engine->wait();
    ended[tag] = got;
  }
  EXPECT_EQ(ended, (std::map<std::uint64_t, ::ssize_t>{{2, kPart}, {3, -EBADF}}));
}

TEST_P(Engines, LeaveMemoryAloneOnceTheyAreGone) {
  for (int trial = 0; trial < 50; ++trial) {
    auto engine = make();
    for (std::uint64_t i = 0; i < kDepth; ++i) engine->start(part(i));
    engine.reset();
    std::ranges::fill(memory_, std::byte{0});
    ASSERT_TRUE(std::ranges::all_of(memory_, [](std::byte byte) { return byte == std::byte{0}; }));
  }
}

TEST_P(Engines, ReadIntoOtherMemoryToo) {
  auto const engine = make();
  test::Bytes other(2 * kPart);
  auto read = part(7);
  read.to = other.data() + (kPart - reinterpret_cast<std::uintptr_t>(other.data()) % kPart) % kPart;
  engine->start(read);
  EXPECT_EQ(engine->wait().got, kPart);
  EXPECT_TRUE(std::ranges::equal(std::span(read.to, kPart), std::span(bytes_).subspan(7 * kPart, kPart)));
}

INSTANTIATE_TEST_SUITE_P(Read, Engines,
                         testing::Values(Implementation{"Pread", false, false}, Implementation{"Uring", true, false},
                                         Implementation{"PreadDirect", false, true},
                                         Implementation{"UringDirect", true, true}),
                         [](auto const& tested) { return tested.param.name; });

// ---- io_uring where it is not to be had ----

TEST(UringEngine, ThatIsForbiddenIsAnErrorThatSaysSo) {
  if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  for (auto const error : {EPERM, ENOSYS}) {
    auto const outcome = test::outcome_with_failing(SYS_io_uring_setup, error, [] {
      EXPECT_NE(why_no_uring_engine(), "");
      static_cast<void>(make_uring_engine(kDepth, {}));
    });
    if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
    EXPECT_THAT(*outcome, HasSubstr("74 io_uring: cannot be set up: " + reason(error)));
  }
}

TEST(UringEngine, ReadsWhereNoMemoryMayBeLocked) {
  if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  test::TempDir const dir;
  auto const bytes = test::random_bytes(kPart, 2);
  auto const fd = open_regular(write(dir, bytes));
  auto const outcome = test::outcome_with_failing(SYS_io_uring_register, ENOMEM, [&] {
    test::Bytes memory(kPart);
    auto const engine = make_uring_engine(kDepth, memory);
    engine->start({.fd = fd.get(), .to = memory.data(), .size = kPart, .offset = 0, .tag = 5});
    if (engine->wait().got != kPart || memory != bytes) throw std::runtime_error("other bytes");
  });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_EQ(*outcome, "done");
}

TEST(UringEngine, IsNotToBeHadWhereItCanBeSetUpButNotEntered) {
  if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  auto const outcome =
      test::outcome_with_failing(SYS_io_uring_enter, EPERM, [] { throw std::runtime_error(why_no_uring_engine()); });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_THAT(*outcome, HasSubstr("io_uring: takes no reads: " + reason(EPERM)));
}

/// A read that ends when the test says so.
class SlowRead : public testing::Test {
 protected:
  void SetUp() override {
    if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe(ends.data()), 0);
    out_ = UniqueFd(ends[0]);
    in_ = UniqueFd(ends[1]);
  }
  [[nodiscard]] EngineRead read() { return {.fd = out_.get(), .to = &byte_, .size = 1, .offset = 0, .tag = 7}; }
  void end() const { ASSERT_EQ(::write(in_.get(), "x", 1), 1); }

  UniqueFd out_, in_;
  std::byte byte_{};
};

// The kernel goes on writing to the memory of what it has taken, whatever it refuses now.
TEST_F(SlowRead, IsWaitedForByAnEngineThatGoes) {
  auto engine = make_uring_engine(kDepth, {});
  engine->start(read());
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    end();
  });
  engine.reset();
  EXPECT_EQ(byte_, std::byte{'x'});
  later.join();
}

// As one that a callback of the caller's forks.
TEST_F(SlowRead, IsNotWaitedForByAChildThatGoes) {
  auto engine = make_uring_engine(kDepth, {});
  engine->start(read());
  EXPECT_EXIT(
      {
        engine.reset();
        std::_Exit(0);
      },
      testing::ExitedWithCode(0), "");
  end();
  EXPECT_EQ(engine->wait().got, 1);
}

// ---- one that goes on by pread ----

/// Ends some reads, then throws; what is under way then it has half done.
class BreakingEngine final : public ReadEngine {
 public:
  explicit BreakingEngine(unsigned good) : good_(good) {}
  void start(EngineRead const& read) override {
    waiting_.push_back(read);
    engine_->start(read);
  }
  EngineCompletion wait() override {
    if (good_-- == 0) {
      for (auto const& read : waiting_) *read.to = ~*read.to;
      throw IoError(ExitCode::io, "takes no reads");
    }
    auto const completion = engine_->wait();
    std::erase_if(waiting_, [&](EngineRead const& read) { return read.tag == completion.tag; });
    return completion;
  }

 private:
  unsigned good_;
  std::vector<EngineRead> waiting_;
  std::unique_ptr<ReadEngine> engine_ = make_pread_engine();
};

TEST(LastingEngine, BringsEveryReadOnceWhereverTheOtherOneBreaks) {
  test::TempDir const dir;
  auto const bytes = test::random_bytes(kFileBytes, 3);
  auto const fd = open_regular(write(dir, bytes));
  for (unsigned good = 0; good <= 20; ++good) {
    std::string ended_by;
    auto const engine = make_lasting_engine(std::make_unique<BreakingEngine>(good),
                                            [&](IoError const& error) { ended_by += error.what(); });
    test::Bytes got(20 * kPart);
    auto const start = [&](std::uint64_t i) {
      engine->start({.fd = fd.get(), .to = got.data() + i * kPart, .size = kPart, .offset = i * kPart, .tag = i});
    };
    for (std::uint64_t i = 0; i < kDepth; ++i) start(i);
    std::set<std::uint64_t> ended;
    for (std::uint64_t i = 0; i < 20; ++i) {
      auto const completion = engine->wait();
      EXPECT_EQ(completion.got, kPart);
      EXPECT_TRUE(ended.insert(completion.tag).second) << completion.tag << " ended twice";
      if (i + kDepth < 20) start(i + kDepth);
    }
    EXPECT_TRUE(std::ranges::equal(got, std::span(bytes).first(got.size()))) << good;
    EXPECT_EQ(ended_by, good < 20 ? "takes no reads" : "") << "told once";
  }
}

}  // namespace
}  // namespace rankslice
