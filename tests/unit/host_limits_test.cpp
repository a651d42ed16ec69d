#include "io/host_limits.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "io/file_system.hpp"

namespace rankslice {
namespace {

namespace fs = std::filesystem;

/// A system of a few files.
class HostLimits : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(root_); }
  void TearDown() override { fs::remove_all(root_); }

  void write(std::string const& path, std::string const& text) const {
    fs::create_directories((root_ + path).substr(0, (root_ + path).rfind('/')));
    std::ofstream(root_ + path) << text;
  }

  std::string root_ =
      testing::TempDir() + "host_limits_" + testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(HostLimits, OfMemoryIsTheLowestOfAllGroupsAboveTheProcess) {
  write("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
  write("/proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  write("/sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n");
  write("/sys/fs/cgroup/slurm/job_7/memory.max", "4294967296\n");
  write("/sys/fs/cgroup/slurm/memory.max", "8589934592\n");
  auto const limit = memory_limit(root_);
  ASSERT_TRUE(limit);
  EXPECT_EQ(limit->bytes, 4294967296U);
  EXPECT_EQ(limit->by, root_ + "/sys/fs/cgroup/slurm/job_7/memory.max");
}

TEST_F(HostLimits, OfMemoryIsTheHostsWhereNoGroupHasALowerOne) {
  write("/proc/meminfo", "MemTotal:       2048 kB\n");
  write("/proc/self/cgroup", "0::/\n");
  write("/sys/fs/cgroup/memory.max", "4294967296\n");
  EXPECT_EQ(memory_limit(root_)->bytes, 2048U * 1024);
}

TEST_F(HostLimits, OfMemoryKnowsTheFirstVersionOfGroups) {
  write("/proc/self/cgroup", "7:cpu,cpuacct:/x\n5:memory:/job\n");
  write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1073741824\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(memory_limit(root_)->bytes, 1073741824U);
}

TEST_F(HostLimits, OfMemoryIsUnknownWhereNothingTells) { EXPECT_FALSE(memory_limit(root_)); }

TEST_F(HostLimits, TellWhichHugePagesAreGiven) {
  EXPECT_EQ(huge_pages(root_), "");
  write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  EXPECT_EQ(huge_pages(root_), "madvise");
}

TEST(FileSystemName, IsThatOfMountForKnownOnes) {
  EXPECT_EQ(file_system_name(0xEF53), "ext4");
  EXPECT_EQ(file_system_name(0x6969), "nfs");
  EXPECT_EQ(file_system_name(0x0BD00BD0), "lustre");
  EXPECT_EQ(file_system_name(0x01021994), "tmpfs");
  EXPECT_EQ(file_system_name(0x794C7630), "overlay");
  EXPECT_EQ(file_system_name(0x12345), "0x12345");
}

TEST(FileSystemName, TellsWhichOtherHostsMaySee) {
  for (auto const* name : {"nfs", "lustre", "gpfs", "beegfs", "ceph", "fuse"})
    EXPECT_TRUE(is_network_file_system(name));
  for (auto const* name : {"ext4", "tmpfs", "overlay", "0x12345"}) EXPECT_FALSE(is_network_file_system(name));
}

}  // namespace
}  // namespace rankslice
