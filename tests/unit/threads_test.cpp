#include "core/threads.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <atomic>
#include <barrier>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "rankslice/error.hpp"

#include "support/failing_syscall.hpp"

namespace {

thread_local int allocations_left = -1;  // of this thread; less than none: there is no limit

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t size) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (auto* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace rankslice {
namespace {

class Threads : public testing::TestWithParam<int> {};

TEST_P(Threads, DoEachStepOnceAndAtTheSameTime) {
  auto const threads = GetParam();
  std::barrier all_here(threads);  // hangs when one step waits for the end of another one
  std::vector<std::atomic<int>> steps(static_cast<std::size_t>(threads));
  in_threads(threads, {}, [&](int thread, BlockDone const&) {
    ++steps[static_cast<std::size_t>(thread)];
    all_here.arrive_and_wait();
  });
  for (auto const& count : steps) EXPECT_EQ(count, 1);
}

TEST_P(Threads, TellAllBytesOnTheCallersThread) {
  auto const caller = std::this_thread::get_id();
  std::uint64_t told = 0, expected = 0;
  for (int thread = 0; thread < GetParam(); ++thread) expected += 100U * static_cast<std::uint64_t>(thread + 1);
  auto const done = [&](std::uint64_t bytes) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    told += bytes;
  };
  in_threads(GetParam(), done, [](int thread, BlockDone const& block_done) {
    for (int block = 0; block < 100; ++block) block_done(static_cast<std::uint64_t>(thread + 1));
  });
  EXPECT_EQ(told, expected);
}

TEST_P(Threads, TellWhileTheCallerWaits) {
  std::atomic<bool> told = false;
  in_threads(
      GetParam() + 1, [&](std::uint64_t) { told = true; },
      [&](int thread, BlockDone const& done) {
        if (thread != GetParam()) return;
        done(1);
        while (!told) std::this_thread::yield();
      });
  EXPECT_TRUE(told);
}

TEST_P(Threads, StopAtTheErrorOfEachOne) {
  for (int failing = 0; failing < GetParam(); ++failing) {
    std::atomic<int> stopped = 0;
    auto const step = [&](int thread, BlockDone const& done) {
      if (thread == failing) throw std::runtime_error(std::to_string(thread));
      try {
        while (true) done(1);
      } catch (...) {
        ++stopped;
        throw;
      }
    };
    try {
      in_threads(GetParam(), {}, step);
      ADD_FAILURE() << "no error";
    } catch (std::runtime_error const& error) {
      EXPECT_EQ(error.what(), std::to_string(failing));
    }
    EXPECT_EQ(stopped, GetParam() - 1);
  }
}

TEST_P(Threads, ThrowTheErrorOfTheLowestOfThoseThatFailed) {
  std::barrier all_here(GetParam());
  auto const step = [&](int thread, BlockDone const&) {
    all_here.arrive_and_wait();
    if (thread > 0 || GetParam() == 1) throw std::runtime_error(std::to_string(thread));
  };
  try {
    in_threads(GetParam(), {}, step);
    ADD_FAILURE() << "no error";
  } catch (std::runtime_error const& error) {
    EXPECT_EQ(error.what(), std::string(GetParam() == 1 ? "0" : "1"));
  }
}

TEST_P(Threads, StopWhenTheCallerIsToldTo) {
  auto const interrupt = [](std::uint64_t) { throw std::runtime_error("stop"); };
  auto const step = [](int, BlockDone const& done) {
    while (true) done(1);
  };
  EXPECT_THROW(in_threads(GetParam(), interrupt, step), std::runtime_error);
}

TEST_P(Threads, StopWhenTheCallerIsToldToWhileItWaits) {
  auto const interrupt = [](std::uint64_t) { throw std::runtime_error("stop"); };
  auto const step = [](int thread, BlockDone const& done) {
    while (thread > 0) done(1);
  };
  EXPECT_THROW(in_threads(GetParam() + 1, interrupt, step), std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(OfAnyNumber, Threads, testing::Values(1, 2, 3, 8, 16));

TEST(ThreadsAlone, AreTheCallersAndStartNone) {
  auto const caller = std::this_thread::get_id();
  std::vector<std::uint64_t> told;
  auto const step = [&](int thread, BlockDone const& done) {
    EXPECT_EQ(thread, 0);
    EXPECT_EQ(std::this_thread::get_id(), caller);
    done(3);
    done(4);
  };
  in_threads(
      1, [&](std::uint64_t bytes) { told.push_back(bytes); }, step);
  EXPECT_EQ(told, (std::vector<std::uint64_t>{3, 4}));
}

TEST(ThreadsOfOthers, LeaveSignalsToThoseThatWereThere) {
  in_threads(2, {}, [](int thread, BlockDone const&) {
    sigset_t blocked;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    EXPECT_EQ(sigismember(&blocked, SIGTERM), thread);
    EXPECT_EQ(sigismember(&blocked, SIGSEGV), 0) << "who reports crashes wants to see it";
  });
}

TEST(ThreadsOfOthers, AreTheCallersWhereTheSystemGivesNone) {
  auto const outcome = test::outcome_with_failing(SYS_clone3, EAGAIN, [] {
    std::vector<int> ran;
    std::uint64_t told = 0;
    auto const caller = std::this_thread::get_id();
    in_threads(
        4, [&](std::uint64_t bytes) { told += bytes; },
        [&](int thread, BlockDone const& done) {
          if (std::this_thread::get_id() != caller) throw IoError(ExitCode::io, "a thread was given");
          ran.push_back(thread);
          done(1);
        });
    if (ran != std::vector{0, 1, 2, 3} || told != 4) throw IoError(ExitCode::io, "not all of it was done");
  });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_EQ(*outcome, "done");
}

TEST(ThreadsOfOthers, AreTheCallersWhereThereIsNoMemoryForThem) {
  std::set<int> ran;
  std::mutex mutex;
  for (int given = 0; given <= 3; ++given) {
    ran.clear();
    allocations_left = 2 + given;  // two for the list of them and for their errors
    in_threads(4, {}, [&](int thread, BlockDone const&) {
      allocations_left = -1;
      std::lock_guard const lock(mutex);
      ran.insert(thread);
    });
    EXPECT_EQ(ran, (std::set{0, 1, 2, 3})) << given;
  }
}

TEST(RequiredThreads, AreThereOrAnErrorThatNamesTheLimits) {
  for (auto const threads : {1, 2, 16}) EXPECT_NO_THROW(require_threads(threads));
  auto const outcome = test::outcome_with_failing(SYS_clone3, EAGAIN, [] { require_threads(3); });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_THAT(*outcome, testing::AllOf(testing::StartsWith("2 3 threads were asked for, and the system gives 1: "),
                                       testing::HasSubstr("ulimit -u"), testing::HasSubstr("pids.max")));
}

TEST(ThreadsOfOthers, TellNothingWhereNothingWasDone) {
  auto calls = 0;
  std::atomic<bool> over = false;
  std::jthread const timer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    over = true;
  });
  in_threads(
      2, [&](std::uint64_t) { ++calls; },
      [&](int thread, BlockDone const&) {
        while (thread == 1 && !over) std::this_thread::yield();
      });
  EXPECT_EQ(calls, 0);
}

}  // namespace
}  // namespace rankslice
