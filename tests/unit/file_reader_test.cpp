#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/direct_file.hpp"
#include "io/file.hpp"
#include "io/positional.hpp"
#include "io/read_ahead.hpp"
#include "io/window_reader.hpp"
#include "support/faulty_reader.hpp"
#include "support/memory_reader.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {

namespace {

using test::FaultyReader;
using test::MemoryReader;
using test::ReadFaults;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

std::vector<std::byte> numbered_bytes(std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 37 + i / 251);
  return bytes;
}

void put_file(std::string const& path, std::vector<std::byte> const& bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<char const*>(bytes.data()), std::ssize(bytes));
}

std::vector<std::byte> read_range(FileReader& reader, std::uint64_t begin, std::uint64_t end) {
  std::vector<std::byte> out(end - begin);
  reader.read(out, begin);
  return out;
}

template <typename Thrown>
std::string message_of(std::function<void()> const& call, ExitCode code) {
  try {
    call();
  } catch (Thrown const& error) {
    EXPECT_EQ(error.code, code);
    EXPECT_FALSE(error.file.empty());
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

struct Implementation {
  std::string name;
  std::function<std::unique_ptr<FileReader>(std::string const& path)> open;
  bool uring = false;
};

void PrintTo(Implementation const& implementation, std::ostream* out) { *out << implementation.name; }

std::unique_ptr<FileReader> open_faulty(std::string const& path, ReadFaults faults) {
  return std::make_unique<FaultyReader>(open_reader(path), faults);
}

/// Behind a small window, with runs that end at odd places.
std::unique_ptr<FileReader> open_with_window(std::string const& path) {
  static ReadWindows windows(50);
  return std::make_unique<WindowReader>(open_reader(path), std::vector<Range>{{3, 120}, {121, 200}, {290, 300}},
                                        windows);
}

/// Some of a file read ahead, by an engine, past the page cache or through it.
class ReadAheadFile final : public FileReader {
 public:
  ReadAheadFile(std::string const& path, bool uring, bool direct)
      : ahead_(
            plan_blocks({{0, {3, 120}}, {0, {290, 300}}}, {.alignment = direct ? kDirectAlignment : 1, .most_gap = 0}),
            [=](std::uint32_t) {
              auto fd = direct ? open_direct(path) : UniqueFd();
              return fd.valid() ? std::move(fd) : open_regular(path);
            },
            [=](unsigned depth, std::span<std::byte> memory) {
              return uring ? make_uring_engine(depth, memory) : make_pread_engine();
            }),
        reader_(open_reader(path), 0, ahead_) {}

  [[nodiscard]] std::string const& path() const override { return reader_.path(); }
  [[nodiscard]] FileIdentity identity() const override { return reader_.identity(); }
  void read(std::span<std::byte> out, std::uint64_t offset) override { reader_.read(out, offset); }

 private:
  ReadAhead ahead_;
  AheadReader reader_;
};

Implementation read_ahead(std::string name, bool uring, bool direct) {
  auto const open = [=](std::string const& path) { return std::make_unique<ReadAheadFile>(path, uring, direct); };
  return {.name = std::move(name), .open = open, .uring = uring};
}

/// What every FileReader promises.
class FileReaderConformance : public testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    if (GetParam().uring && !why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  }
  std::unique_ptr<FileReader> open(std::vector<std::byte> const& bytes) {
    put_file(path_, bytes);
    return GetParam().open(path_);
  }

  TempDir dir_;
  std::string path_ = dir_.file("data");
};

TEST_P(FileReaderConformance, GivesTheBytesOfAnyRange) {
  auto const bytes = numbered_bytes(300);
  auto const reader = open(bytes);
  for (std::uint64_t begin = 0; begin <= 300; begin += 7) {
    for (std::uint64_t end = begin; end <= 300; end += 13) {
      auto const expected = std::vector(bytes.begin() + std::ptrdiff_t(begin), bytes.begin() + std::ptrdiff_t(end));
      EXPECT_EQ(read_range(*reader, begin, end), expected) << begin << " to " << end;
    }
  }
}

TEST_P(FileReaderConformance, SaysWhereTheFileEndsWhenItEndsTooEarly) {
  auto const reader = open(numbered_bytes(300));
  EXPECT_THAT(message_of<FormatError>([&] { read_range(*reader, 290, 301); }, ExitCode::bad_data),
              AllOf(HasSubstr(reader->path()), HasSubstr("ends at"), HasSubstr("300"), HasSubstr("[290, 301)")));
}

TEST_P(FileReaderConformance, TellsTheEndOfTheFileAlsoToReadsThatBeginBehindIt) {
  auto const reader = open(numbered_bytes(300));
  EXPECT_THAT(message_of<FormatError>([&] { read_range(*reader, 1000, 1001); }, ExitCode::bad_data),
              AllOf(HasSubstr("ends at"), HasSubstr("300"), HasSubstr("[1000, 1001)")));
}

TEST_P(FileReaderConformance, ReadsNothingFromAnEmptyFile) {
  auto const reader = open({});
  EXPECT_TRUE(read_range(*reader, 0, 0).empty());
  EXPECT_THROW(read_range(*reader, 0, 1), FormatError);
  EXPECT_EQ(reader->identity().size, 0U);
}

TEST_P(FileReaderConformance, KnowsThePathAndTheSize) {
  auto const reader = open(numbered_bytes(77));
  EXPECT_EQ(reader->path(), path_);
  EXPECT_EQ(reader->identity().size, 77U);
  EXPECT_EQ(reader->identity(), reader->identity());
}

INSTANTIATE_TEST_SUITE_P(
    Readers, FileReaderConformance,
    testing::Values(
        Implementation{"Posix", open_reader},
        Implementation{"Memory",
                       [](auto const& path) { return std::make_unique<MemoryReader>(read_file(path, 1_MiB), path); }},
        Implementation{"Window", open_with_window}, read_ahead("AheadByPread", false, false),
        read_ahead("AheadByUring", true, false), read_ahead("AheadDirectByPread", false, true),
        read_ahead("AheadDirectByUring", true, true),
        Implementation{"ShortReads", [](auto const& path) { return open_faulty(path, {.most_bytes = 3}); }},
        Implementation{"Interrupted", [](auto const& path) { return open_faulty(path, {.interrupt_every = 2}); }},
        Implementation{"ShortAndInterrupted",
                       [](auto const& path) { return open_faulty(path, {.most_bytes = 1, .interrupt_every = 3}); }}),
    [](auto const& tested) { return tested.param.name; });

class OpenReader : public testing::Test {
 protected:
  TempDir dir_;
};

TEST_F(OpenReader, CallsAnAbsentFileOrFolderMissingInput) {
  put_file(dir_.file("plain"), {});
  for (auto const* name : {"absent", "absent/file", "plain/file"}) {
    auto const path = dir_.file(name);
    EXPECT_THAT(message_of<IoError>([&] { static_cast<void>(open_reader(path)); }, ExitCode::input_missing),
                HasSubstr(path));
  }
}

TEST_F(OpenReader, GivesTheReasonOfOtherFailures) {
  auto const loop = dir_.file("loop");
  ASSERT_EQ(::symlink(loop.c_str(), loop.c_str()), 0);
  EXPECT_THAT(message_of<IoError>([&] { static_cast<void>(open_reader(loop)); }, ExitCode::io),
              AllOf(HasSubstr(loop), HasSubstr("Too many levels of symbolic links")));
}

TEST_F(OpenReader, FollowsSymbolicLinks) {
  put_file(dir_.file("blob"), numbered_bytes(5));
  ASSERT_EQ(::symlink("blob", dir_.file("name").c_str()), 0);
  EXPECT_EQ(read_range(*open_reader(dir_.file("name")), 0, 5), numbered_bytes(5));
}

TEST_F(OpenReader, RefusesWhatIsNoRegularFileWithoutWaitingForIt) {
  auto const fifo = dir_.file("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  auto const socket_path = dir_.file("socket");
  UniqueFd const socket(::socket(AF_UNIX, SOCK_STREAM, 0));
  ::sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  socket_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<::sockaddr*>(&address), sizeof(address)), 0);
  for (auto const& path : {fifo, socket_path, dir_.path().string(), std::string("/dev/zero")}) {
    EXPECT_THAT(message_of<FormatError>([&] { static_cast<void>(open_reader(path)); }, ExitCode::bad_data),
                AllOf(HasSubstr(path), HasSubstr("not a regular file")));
  }
}

TEST_F(OpenReader, LeavesNoFileThatIoUringWouldNotWaitFor) {
  auto const path = dir_.file("data");
  std::ofstream(path) << "some";
  EXPECT_EQ(::fcntl(open_regular(path).get(), F_GETFL) & O_NONBLOCK, 0);
  auto const direct = open_direct(path);
  if (!direct.valid()) GTEST_SKIP() << "this file system lets nobody past its cache";
  EXPECT_EQ(::fcntl(direct.get(), F_GETFL) & (O_NONBLOCK | O_DIRECT), O_DIRECT);
}

TEST_F(OpenReader, SeesAFileThatShrinksUnderIt) {
  put_file(dir_.file("data"), numbered_bytes(100));
  auto const reader = open_reader(dir_.file("data"));
  std::filesystem::resize_file(dir_.file("data"), 40);
  EXPECT_THAT(message_of<FormatError>([&] { read_range(*reader, 0, 100); }, ExitCode::bad_data),
              HasSubstr("ends at byte 40, wanted [0, 100)"));
}

TEST_F(OpenReader, TellsAFileFromItsSuccessorAndFromItselfAfterAChange) {
  put_file(dir_.file("data"), numbered_bytes(100));
  auto const reader = open_reader(dir_.file("data"));
  auto const before = reader->identity();

  put_file(dir_.file("other"), numbered_bytes(100));
  std::filesystem::rename(dir_.file("other"), dir_.file("data"));
  EXPECT_NE(open_reader(dir_.file("data"))->identity(), before);

  auto const successor = open_reader(dir_.file("data"));
  auto const unchanged = successor->identity();
  std::filesystem::resize_file(dir_.file("data"), 99);
  EXPECT_NE(successor->identity(), unchanged);
}

TEST(FaultyReads, ReportTheReasonAndTheByte) {
  TempDir const dir;
  put_file(dir.file("data"), numbered_bytes(100));
  auto const reader = open_faulty(dir.file("data"), {.most_bytes = 8, .fails_at = 64});
  EXPECT_EQ(read_range(*reader, 0, 64), read_range(*open_reader(dir.file("data")), 0, 64));
  EXPECT_THAT(
      message_of<IoError>([&] { read_range(*reader, 16, 90); }, ExitCode::io),
      AllOf(HasSubstr(dir.file("data")), HasSubstr("[16, 90)"), HasSubstr("at 64"), HasSubstr("Input/output error")));
}

TEST(ReadFile, GivesTheWholeFile) {
  TempDir const dir;
  put_file(dir.file("data"), numbered_bytes(1000));
  EXPECT_EQ(read_file(dir.file("data"), 1000), numbered_bytes(1000));
  put_file(dir.file("empty"), {});
  EXPECT_TRUE(read_file(dir.file("empty"), 0).empty());
}

TEST(ReadFile, RefusesAFileOverTheLimitByItsSize) {
  TempDir const dir;
  put_file(dir.file("data"), numbered_bytes(1000));
  EXPECT_THAT(message_of<FormatError>([&] { static_cast<void>(read_file(dir.file("data"), 999)); }, ExitCode::bad_data),
              AllOf(HasSubstr(dir.file("data")), HasSubstr("1000 bytes"), HasSubstr("999")));
}

}  // namespace

}  // namespace rankslice
