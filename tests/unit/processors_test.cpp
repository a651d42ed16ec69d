#include "io/processors.hpp"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "support/failing_syscall.hpp"

namespace rankslice {
namespace {

namespace fs = std::filesystem;

Processors on(std::vector<int> ids, std::optional<CpuQuota> quota = {}) {
  return {.ids = std::move(ids), .quota = std::move(quota)};
}

std::vector<int> numbers(int begin, int end) {
  std::vector<int> ids(static_cast<std::size_t>(end - begin));
  std::iota(ids.begin(), ids.end(), begin);
  return ids;
}

std::vector<int> threads_of_each(std::vector<Processors> const& of_host) {
  std::vector<int> threads;
  for (std::size_t i = 0; i < of_host.size(); ++i) threads.push_back(fair_threads(of_host, i));
  return threads;
}

TEST(FairThreads, AreAllProcessorsOfOneWhoIsAlone) {
  EXPECT_EQ(fair_threads({on({0})}, 0), 1);
  EXPECT_EQ(fair_threads({on({3, 5, 6})}, 0), 3);
  EXPECT_EQ(fair_threads({on(numbers(0, 16))}, 0), 16);
}

TEST(FairThreads, AreNeverMoreThan16) { EXPECT_EQ(fair_threads({on(numbers(0, 200))}, 0), 16); }

TEST(FairThreads, AreOneWhereTheSystemDoesNotSay) { EXPECT_EQ(fair_threads({on({})}, 0), 1); }

TEST(FairThreads, AreSharedByRanksThatAreNotBound) {
  EXPECT_EQ(threads_of_each({on({0, 1}), on({0, 1})}), (std::vector{1, 1}));
  EXPECT_EQ(threads_of_each({on({0, 1}), on({0, 1}), on({0, 1}), on({0, 1})}), (std::vector{1, 1, 1, 1}));
  EXPECT_EQ(threads_of_each(std::vector(6, on(numbers(0, 6)))), std::vector(6, 1));  // six sixths are one
  EXPECT_EQ(threads_of_each(std::vector(8, on(numbers(0, 96)))), std::vector(8, 12));
  EXPECT_EQ(threads_of_each(std::vector(2, on({0, 1, 2}))), (std::vector{1, 1}));
}

TEST(FairThreads, AreTheOwnProcessorsOfRanksThatAreBound) {
  EXPECT_EQ(threads_of_each({on({0, 1}), on({2, 3, 4})}), (std::vector{2, 3}));
}

TEST(FairThreads, AreSharedWithinASocket) {
  auto const first = on(numbers(0, 8)), second = on(numbers(8, 16));
  EXPECT_EQ(threads_of_each({first, first, second, first, second, first}), (std::vector{2, 2, 4, 2, 4, 2}));
}

TEST(FairThreads, CountWhatOnlyOneMayUse) {
  EXPECT_EQ(threads_of_each({on(numbers(0, 8)), on({0, 1})}), (std::vector{7, 1}));
}

TEST(FairThreads, KeepToTheQuotaThatAGroupSharesAndRoundDown) {
  CpuQuota const pod{.processors = 4, .group = "/pod"};
  EXPECT_EQ(threads_of_each({on(numbers(0, 32), pod)}), (std::vector{4}));
  EXPECT_EQ(threads_of_each({on(numbers(0, 32), pod), on(numbers(0, 32), pod)}), (std::vector{2, 2}));
  CpuQuota const other{.processors = 3.5, .group = "/other"};
  EXPECT_EQ(threads_of_each({on(numbers(0, 32), pod), on(numbers(0, 32), other), on(numbers(0, 32))}),
            (std::vector{4, 3, 10}));
  EXPECT_EQ(threads_of_each({on(numbers(0, 32), CpuQuota{.processors = 0.5, .group = "/"})}), (std::vector{1}));
}

TEST(FairThreads, OfAllRanksAreNoMoreThanThereAreProcessors) {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    auto const processors = 1 + static_cast<int>(random() % 40);
    std::vector<Processors> of_host(1 + random() % 20);
    for (auto& rank : of_host) {
      for (int id = 0; id < processors; ++id) {
        if (random() % 3 != 0) rank.ids.push_back(id);
      }
    }
    auto beyond_one = 0;  // each has one whatever there is
    auto const threads = threads_of_each(of_host);
    for (std::size_t i = 0; i < threads.size(); ++i) {
      EXPECT_GE(threads[i], 1);
      EXPECT_LE(threads[i], 16);
      EXPECT_LE(threads[i], std::max<std::size_t>(1, of_host[i].ids.size()));
      if (threads[i] > 1) beyond_one += threads[i];
    }
    EXPECT_LE(beyond_one, processors);
  }
}

TEST(FairThreads, WithoutOtherMasksAreAShareOfTheCommonProcessors) {
  EXPECT_EQ(fair_threads(on(numbers(0, 32)), 32, 1), 16);
  EXPECT_EQ(fair_threads(on(numbers(0, 32)), 32, 4), 8);   // not bound
  EXPECT_EQ(fair_threads(on(numbers(8, 16)), 32, 4), 8);   // to cores of its own
  EXPECT_EQ(fair_threads(on(numbers(0, 16)), 32, 16), 2);  // to one of two sockets
  EXPECT_EQ(fair_threads(on(numbers(0, 2)), 2, 8), 1);
  EXPECT_EQ(fair_threads(on(numbers(0, 32), CpuQuota{.processors = 6, .group = "/"}), 32, 2), 3);
}

TEST(ListsOfTheKernel, AreCounted) {
  EXPECT_EQ(count_in_list("0"), 1U);
  EXPECT_EQ(count_in_list("0-3,8,10-11"), 7U);
  EXPECT_EQ(count_in_list("0-1023"), 1024U);
  for (auto const* none : {"", "-", "a", "3-1", "1;2", "4-"}) EXPECT_EQ(count_in_list(none), 0U) << none;
}

TEST(OwnProcessors, AreThoseOfTheAffinityMask) {
  cpu_set_t before;
  ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  std::vector<int> ids;
  for (int id = 0; id < CPU_SETSIZE; ++id) {
    if (CPU_ISSET(static_cast<std::size_t>(id), &before)) ids.push_back(id);
  }
  EXPECT_EQ(own_processors().ids, ids);

  cpu_set_t last;
  CPU_ZERO(&last);
  CPU_SET(static_cast<std::size_t>(ids.back()), &last);
  ASSERT_EQ(::sched_setaffinity(0, sizeof last, &last), 0);
  EXPECT_EQ(own_processors().ids, std::vector{ids.back()});
  ::sched_setaffinity(0, sizeof before, &before);
}

TEST(OwnProcessors, AreAllThatThereAreWhereTheSystemDoesNotTell) {
  auto const online = static_cast<std::size_t>(::sysconf(_SC_NPROCESSORS_ONLN));
  auto const outcome = test::outcome_with_failing(SYS_sched_getaffinity, EPERM, [&] {
    if (own_processors().ids.size() != online) throw UsageError("some are missing");
  });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_EQ(*outcome, "done");
}

/// A system of a few files.
class Cpus : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(root_); }
  void TearDown() override { fs::remove_all(root_); }

  void write(std::string const& path, std::string const& text) const {
    fs::create_directories((root_ + path).substr(0, (root_ + path).rfind('/')));
    std::ofstream(root_ + path) << text;
  }

  std::string root_ = testing::TempDir() + "cpus_" + testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(Cpus, HaveTheTightestQuotaOfAllGroupsAboveTheProcess) {
  write("/proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  write("/sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/slurm/job_7/cpu.max", "250000 100000\n");
  write("/sys/fs/cgroup/slurm/cpu.max", "800000 100000\n");
  auto const quota = own_processors(root_).quota;
  ASSERT_TRUE(quota);
  EXPECT_EQ(quota->processors, 2.5);
  EXPECT_EQ(quota->group, root_ + "/sys/fs/cgroup/slurm/job_7");
}

TEST_F(Cpus, KnowTheFirstVersionOfGroups) {
  write("/proc/self/cgroup", "7:cpu,cpuacct:/x\n5:memory:/job\n3:cpuset:/y\n");
  write("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "300000\n");
  write("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
  write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  write("/sys/fs/cgroup/cpuset/y/cpuset.cpus", "4-9\n");
  EXPECT_EQ(own_processors(root_).quota->processors, 3);
  EXPECT_EQ(common_processors(root_), 6U);
}

TEST_F(Cpus, HaveTheQuotaOfAContainerThatSeesItsOwnGroupUnderTheNameThatItHasOutside) {
  write("/proc/self/cgroup", "7:cpu,cpuacct:/docker/4f1c\n");
  write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n");
  write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(own_processors(root_).quota->processors, 2);
}

TEST_F(Cpus, HaveNoQuotaWhereNobodyLimitsThem) {
  EXPECT_FALSE(own_processors(root_).quota);
  write("/proc/self/cgroup", "0::/\n");
  write("/sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_FALSE(own_processors(root_).quota);
}

TEST_F(Cpus, AreCommonToTheNearestCpuset) {
  EXPECT_GE(common_processors(root_), 1U);  // the host's
  write("/proc/self/cgroup", "0::/slurm/job_7\n");
  write("/sys/fs/cgroup/cpuset.cpus.effective", "0-63\n");
  EXPECT_EQ(common_processors(root_), 64U);
  write("/sys/fs/cgroup/slurm/job_7/cpuset.cpus.effective", "0-3,32-35\n");
  EXPECT_EQ(common_processors(root_), 8U);
}

}  // namespace
}  // namespace rankslice
