// Reading past the page cache: whatever is asked for comes as it stands in the file.

#include "io/direct_reader.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "rankslice/error.hpp"

#include "io/direct_file.hpp"
#include "io/file.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace {

/// What a read moves at most, aligned or not; 0: whatever the system does.
std::size_t most_per_read = 0;

}  // namespace

extern "C" ::ssize_t pread(int fd, void* to, std::size_t size, ::off_t offset) {
  if (most_per_read == 0) return ::syscall(SYS_pread64, fd, to, size, offset);
  auto const name = "/proc/self/fd/" + std::to_string(fd);
  auto const buffered = ::open(name.c_str(), O_RDONLY | O_CLOEXEC);
  auto const got = ::syscall(SYS_pread64, buffered, to, std::min(size, most_per_read), offset);
  ::close(buffered);
  return got;
}

namespace rankslice::test {
namespace {

class ShortReads {
 public:
  explicit ShortReads(std::size_t most) { most_per_read = most; }
  ~ShortReads() { most_per_read = 0; }
  ShortReads(ShortReads const&) = delete;
  ShortReads& operator=(ShortReads const&) = delete;
};

class DirectReading : public testing::Test {
 protected:
  std::string write(std::string const& name, Bytes const& bytes) {
    auto path = folder_.file(name);
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<char const*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path;
  }

  TempDir folder_;
  DirectBlock block_;
};

TEST_F(DirectReading, GivesTheSameBytesAtEveryOffsetAndSize) {
  auto const bytes = random_bytes(3'000'001, 1);  // several blocks, and an end that is not aligned
  auto const reader = open_direct_reader(write("a", bytes), block_).reader;
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 300; ++trial) {
    auto const size = random() % (trial % 3 == 0 ? 2'500'000 : 9'000);
    auto const offset = random() % (bytes.size() - size + 1);
    Bytes got(size);
    reader->read(got, offset);
    EXPECT_TRUE(std::ranges::equal(got, std::span(bytes).subspan(offset, size))) << offset << " + " << size;
  }
}

TEST_F(DirectReading, OfSeveralFilesDoesNotMixThemUp) {
  auto const first = random_bytes(10'000, 3);
  auto const second = random_bytes(10'000, 4);
  auto const a = open_direct_reader(write("a", first), block_).reader;
  auto const b = open_direct_reader(write("b", second), block_).reader;
  Bytes from_a(100), from_b(100);
  for (std::uint64_t offset = 0; offset < 9'900; offset += 100) {
    a->read(from_a, offset);
    b->read(from_b, offset);
    ASSERT_TRUE(std::ranges::equal(from_a, std::span(first).subspan(offset, 100)));
    ASSERT_TRUE(std::ranges::equal(from_b, std::span(second).subspan(offset, 100)));
  }
}

TEST_F(DirectReading, PastTheEndOfTheFileIsAnError) {
  auto const path = write("a", random_bytes(5'000, 5));
  auto const reader = open_direct_reader(path, block_).reader;
  Bytes got(100);
  EXPECT_THROW(reader->read(got, 4'950), FormatError);
  EXPECT_THROW(reader->read(got, 5'000), FormatError);
}

TEST_F(DirectReading, SeesTheSameFileAsAnyOtherReader) {
  auto const path = write("a", random_bytes(5'000, 6));
  auto const reader = open_direct_reader(path, block_).reader;
  EXPECT_EQ(reader->path(), path);
  EXPECT_EQ(reader->identity(), open_reader(path)->identity());
}

TEST_F(DirectReading, OfAFileThatIsNotThereIsAnError) {
  EXPECT_THROW((void)open_direct_reader(folder_.file("nowhere"), block_), IoError);
}

TEST_F(DirectReading, OfFewBytesAtATimeGoesOnToTheLastOne) {
  auto const bytes = random_bytes(20'001, 7);
  auto const path = write("a", bytes);
  auto const reader = open_direct_reader(path, block_).reader;
  std::mt19937_64 random(8);
  for (auto const most : {1, 100, 512, 4'095, 4'096}) {
    ShortReads const short_reads(static_cast<std::size_t>(most));
    for (int trial = 0; trial < 20; ++trial) {
      auto const size = 1 + random() % (most == 1 ? 100 : 9'000);
      auto const offset = random() % (bytes.size() - size + 1);
      Bytes got(size);
      reader->read(got, offset);
      ASSERT_TRUE(std::ranges::equal(got, std::span(bytes).subspan(offset, size))) << offset << " + " << size;
    }
    Bytes got(100);
    EXPECT_THROW(reader->read(got, 20'000), FormatError) << "but not beyond it";
  }
}

TEST_F(DirectReading, TakesBytesAndIdentityFromTheSameFile) {
  std::array const names{write("a", Bytes(5'000, std::byte{'a'})), write("b", Bytes(5'000, std::byte{'b'}))};
  std::array const inodes{open_reader(names[0])->identity().inode, open_reader(names[1])->identity().inode};
  std::jthread const exchanging([&](std::stop_token const& stop) {
    while (!stop.stop_requested()) {
      ASSERT_EQ(::renameat2(AT_FDCWD, names[0].c_str(), AT_FDCWD, names[1].c_str(), RENAME_EXCHANGE), 0);
    }
  });
  for (int trial = 0; trial < 500; ++trial) {
    auto const reader = open_direct_reader(names[0], block_).reader;
    Bytes got(1);
    reader->read(got, 0);
    ASSERT_EQ(reader->identity().inode, inodes[got[0] == std::byte{'a'} ? 0 : 1]) << trial;
  }
}

TEST(DirectReadingIsClaimed, OfFileSystemsThatDoItWhereTheySayYes) {
  EXPECT_TRUE(keeps_its_word(0xEF53)) << "ext2, ext3, ext4";
  EXPECT_TRUE(keeps_its_word(0x58465342)) << "XFS";
  EXPECT_TRUE(keeps_its_word(0x6969)) << "NFS";
  EXPECT_TRUE(keeps_its_word(0x0BD00BD0)) << "Lustre";
}

TEST(DirectReadingIsClaimed, NotOfFileSystemsThatMayReadThroughTheCache) {
  EXPECT_FALSE(keeps_its_word(0x2FC12FC1)) << "ZFS, before 2.3";
  EXPECT_FALSE(keeps_its_word(0x9123683E)) << "btrfs, what it compresses";
  EXPECT_FALSE(keeps_its_word(0x65735546)) << "FUSE";
  EXPECT_FALSE(keeps_its_word(0x794C7630)) << "overlayfs: of what is below";
  EXPECT_FALSE(keeps_its_word(0x01021994)) << "tmpfs";
}

// Files that live in memory have no other place to be read from: that flag or no flag, nobody must be told so.
TEST_F(DirectReading, IsNotClaimedOfFilesInMemory) {
  std::string const path = "/dev/shm/rankslice-direct-reader-test";
  std::ofstream(path) << "some bytes";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "there is no /dev/shm";
  auto const file = open_direct_reader(path, block_);
  std::filesystem::remove(path);
  EXPECT_FALSE(file.past_page_cache);
  Bytes got(5);
  file.reader->read(got, 5);
  EXPECT_EQ(got.back(), std::byte{'s'});
}

}  // namespace
}  // namespace rankslice::test
