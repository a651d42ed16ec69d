// Reading past the page cache: whatever is asked for comes as it stands in the file.

#include "io/direct_reader.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "rankslice/error.hpp"

#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace rankslice::test {
namespace {

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
  auto const reader = open_direct_reader(write("a", bytes), block_);
  if (!reader) GTEST_SKIP() << "this file system does not read past the page cache";
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
  auto const a = open_direct_reader(write("a", first), block_);
  auto const b = open_direct_reader(write("b", second), block_);
  if (!a || !b) GTEST_SKIP() << "this file system does not read past the page cache";
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
  auto const reader = open_direct_reader(path, block_);
  if (!reader) GTEST_SKIP() << "this file system does not read past the page cache";
  Bytes got(100);
  EXPECT_THROW(reader->read(got, 4'950), FormatError);
  EXPECT_THROW(reader->read(got, 5'000), FormatError);
}

TEST_F(DirectReading, SeesTheSameFileAsAnyOtherReader) {
  auto const path = write("a", random_bytes(5'000, 6));
  auto const reader = open_direct_reader(path, block_);
  if (!reader) GTEST_SKIP() << "this file system does not read past the page cache";
  EXPECT_EQ(reader->path(), path);
  EXPECT_EQ(reader->identity(), open_reader(path)->identity());
}

TEST_F(DirectReading, OfAFileThatIsNotThereIsAnError) {
  EXPECT_THROW((void)open_direct_reader(folder_.file("nowhere"), block_), IoError);
}

// Files that live in memory have no other place to be read from: that flag or no flag, nobody must be told so.
TEST_F(DirectReading, IsNotClaimedOfFilesInMemory) {
  std::string const path = "/dev/shm/rankslice-direct-reader-test";
  std::ofstream(path) << "some bytes";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "there is no /dev/shm";
  EXPECT_EQ(open_direct_reader(path, block_), nullptr);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace rankslice::test
