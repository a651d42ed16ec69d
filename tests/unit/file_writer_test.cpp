#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fstream>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/file.hpp"
#include "support/failing_syscall.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {

namespace {

using test::outcome_with_failing;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::span<std::byte const> bytes_of(std::string const& text) { return std::as_bytes(std::span(text)); }

std::string content(std::string const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class FileWriterTest : public testing::Test {
 protected:
  TempDir dir_;
  std::string path_ = dir_.file("out");
};

TEST_F(FileWriterTest, WritesEachRangeWhereItBelongs) {
  auto writer = FileWriter::create(path_);
  writer.allocate(12);
  writer.write(bytes_of("world"), 7);
  writer.write(bytes_of("hello"), 0);
  writer.write({}, 3);
  writer.sync();
  writer.close();
  EXPECT_EQ(content(path_), std::string("hello\0\0world", 12));
}

TEST_F(FileWriterTest, SeveralWritersShareOneFile) {
  auto first = FileWriter::create(path_);
  first.allocate(6);
  auto second = FileWriter::open(path_);
  second.write(bytes_of("def"), 3);
  second.sync();
  first.write(bytes_of("abc"), 0);
  first.sync();
  EXPECT_EQ(content(path_), "abcdef");
}

TEST_F(FileWriterTest, StartsWriteBackOnTheWayWithoutChangingAByte) {
  std::string block(5_MiB + 3, '\0');
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<char>(i * 2654435761U >> 24);
  auto writer = FileWriter::create(path_);
  writer.allocate(8 * block.size());
  for (std::uint64_t i = 0; i < 8; ++i) writer.write(bytes_of(block), i * block.size());
  writer.sync();
  writer.close();
  auto const written = content(path_);
  ASSERT_EQ(written.size(), 8 * block.size());
  for (std::uint64_t i = 0; i < 8; ++i) EXPECT_TRUE(written.compare(i * block.size(), block.size(), block) == 0) << i;
}

TEST_F(FileWriterTest, AllocatedBytesHaveTheirBlocks) {
  auto writer = FileWriter::create(path_);
  writer.allocate(1_MiB);
  struct ::stat found {};
  ASSERT_EQ(::stat(path_.c_str(), &found), 0);
  EXPECT_EQ(found.st_size, ::off_t{1_MiB});
  EXPECT_GE(found.st_blocks * 512, ::off_t{1_MiB});
}

TEST_F(FileWriterTest, AnEmptyFileCanBeAllocated) {
  auto writer = FileWriter::create(path_);
  writer.allocate(0);
  writer.close();
  EXPECT_EQ(std::filesystem::file_size(path_), 0U);
}

TEST_F(FileWriterTest, CreateNeverTouchesAFileThatIsThere) {
  std::ofstream(path_) << "precious";
  try {
    static_cast<void>(FileWriter::create(path_));
    FAIL();
  } catch (IoError const& error) {
    EXPECT_EQ(error.code, ExitCode::cannot_create);
    EXPECT_EQ(error.file, path_);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(path_), HasSubstr("File exists")));
  }
  EXPECT_EQ(content(path_), "precious");
}

TEST_F(FileWriterTest, OpenMakesNoFile) {
  EXPECT_THROW(static_cast<void>(FileWriter::open(path_)), IoError);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(FileWriterTest, ARequestThatNoDiskHoldsNamesWantedAndFreeBytes) {
  auto writer = FileWriter::create(path_);
  try {
    writer.allocate(std::uint64_t{1} << 62);
    FAIL();
  } catch (IoError const& error) {
    EXPECT_EQ(error.code, ExitCode::cannot_create);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(path_), HasSubstr("4611686018427387904 bytes cannot be reserved"),
                                    testing::ContainsRegex("has [0-9]+ bytes free")));
  }
}

/// The same under system calls that fail.
class FailingWrites : public FileWriterTest {
 protected:
  std::string outcome(long call, int error, std::function<void(FileWriter&)> const& use) {
    auto const text = outcome_with_failing(call, error, [&] {
      auto writer = FileWriter::create(path_);
      use(writer);
    });
    return text.value_or("this system cannot filter system calls");
  }

  void SetUp() override {
    if (!outcome_with_failing(SYS_getppid, EPERM, [] {})) GTEST_SKIP() << "system calls cannot be filtered here";
  }
};

TEST_F(FailingWrites, AFullDiskShowsWhenTheFileIsAllocated) {
  auto const text = outcome(SYS_fallocate, ENOSPC, [](FileWriter& writer) { writer.allocate(12345); });
  EXPECT_THAT(text, AllOf(StartsWith("73 " + path_), HasSubstr("12345 bytes"), HasSubstr("No space left on device")));
}

TEST_F(FailingWrites, AFileSystemThatCannotPromiseBlocksGivesTheSize) {
  for (auto const error : {EOPNOTSUPP, ENOSYS, EINVAL}) {
    EXPECT_EQ(outcome(SYS_fallocate, error, [](FileWriter& writer) { writer.allocate(12345); }), "done");
    EXPECT_EQ(std::filesystem::file_size(path_), 12345U);
    std::filesystem::remove(path_);
  }
}

TEST_F(FailingWrites, AFailedWriteNamesTheBytesAndTheReason) {
  auto const text = outcome(SYS_pwrite64, ENOSPC, [](FileWriter& writer) { writer.write(bytes_of("abc"), 10); });
  EXPECT_THAT(text, AllOf(StartsWith("74 " + path_), HasSubstr("[10, 13)"), HasSubstr("No space left on device")));
}

TEST_F(FailingWrites, AFailedSyncIsReportedAndNeverTurnsIntoASuccess) {
  auto const text = outcome(SYS_fsync, EIO, [](FileWriter& writer) {
    EXPECT_THROW(writer.sync(), IoError);
    writer.write(bytes_of("abc"), 0);
  });
  EXPECT_THAT(text, StartsWith("74 " + path_));
  EXPECT_THAT(outcome_with_failing(SYS_fsync, EIO, [&] { FileWriter::open(path_).sync(); }),
              testing::Optional(AllOf(HasSubstr("fsync failed"), HasSubstr("Input/output error"))));
}

TEST_F(FailingWrites, AFailedCloseIsReported) {
  EXPECT_THAT(outcome(SYS_close, EDQUOT, [](FileWriter& writer) { writer.close(); }),
              AllOf(StartsWith("74 " + path_), HasSubstr("close failed"), HasSubstr("Disk quota exceeded")));
}

TEST_F(FailingWrites, WriteBackIsLeftOutWhereItIsUnknownButItsErrorsCount) {
  auto const much = [](FileWriter& writer) { writer.write(bytes_of(std::string(33_MiB, 'x')), 0); };
  for (auto const unsupported : {ENOSYS, EINVAL, EOPNOTSUPP}) {
    EXPECT_EQ(outcome(SYS_sync_file_range, unsupported, much), "done") << unsupported;
    std::filesystem::remove(path_);
  }
  for (auto const error : {EIO, ENOSPC, EDQUOT, ENODATA, ENOLINK, ESTALE, ETIMEDOUT}) {
    EXPECT_THAT(outcome(SYS_sync_file_range, error, much), AllOf(StartsWith("74 " + path_), HasSubstr("write-back")))
        << error;
    std::filesystem::remove(path_);
  }
}

TEST_F(FailingWrites, AShortWriteIsContinuedUntilTheReasonShows) {
  auto const text = outcome(SYS_getppid, EPERM, [](FileWriter& writer) {
    std::signal(SIGXFSZ, SIG_IGN);
    ::rlimit const limit{.rlim_cur = 1000, .rlim_max = 1000};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    writer.write(bytes_of(std::string(1500, 'x')), 0);
  });
  EXPECT_THAT(text, AllOf(StartsWith("74 " + path_), HasSubstr("[0, 1500) failed at 1000"), HasSubstr("too large")));
  EXPECT_EQ(content(path_), std::string(1000, 'x'));
}

}  // namespace

}  // namespace rankslice
