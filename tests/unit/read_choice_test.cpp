// How files are read: by what is asked for, what the page cache has, and what the system lets us do.

#include "io/read_choice.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/direct_file.hpp"
#include "io/page_cache.hpp"
#include "io/positional.hpp"
#include "io/read_engine.hpp"
#include "support/failing_syscall.hpp"
#include "support/temp_dir.hpp"

namespace {

/// The end of the names of files that a file system in user space opens for reads past the page cache, which fail.
char const* refused_so = nullptr;

bool is_refused(int fd) {
  if (refused_so == nullptr || (::fcntl(fd, F_GETFL) & O_DIRECT) == 0) return false;
  return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).string().ends_with(refused_so);
}

}  // namespace

extern "C" ::ssize_t pread(int fd, void* to, std::size_t size, ::off_t offset) {
  if (!is_refused(fd)) return ::syscall(SYS_pread64, fd, to, size, offset);
  errno = EINVAL;
  return -1;
}

extern "C" int fstatfs(int fd, struct ::statfs* found) noexcept {
  auto const result = static_cast<int>(::syscall(SYS_fstatfs, fd, found));
  if (is_refused(fd)) found->f_type = FUSE_SUPER_MAGIC;
  return result;
}

namespace rankslice {
namespace {

class Refusing {
 public:
  explicit Refusing(char const* name) { refused_so = name; }
  ~Refusing() { refused_so = nullptr; }
  Refusing(Refusing const&) = delete;
  Refusing& operator=(Refusing const&) = delete;
};

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

constexpr auto kBytes = 8_MiB;

/// Two files, of which all is read but a MiB of the second one: that first.
class Choice : public testing::Test {
 protected:
  void SetUp() override {
    for (auto const* name : {"a", "b"}) {
      auto const path = dir_.file(name);
      std::ofstream(path) << std::string(kBytes, *name);
      files_.push_back({.name = name, .path = path, .size = kBytes});
    }
  }
  [[nodiscard]] ReadChoice choose(ReadBackend by, PageCache cache = PageCache::keep) const {
    return choose_reads(files_, extents_, {.backend = by, .cache = cache}, alone_.value_or(extents_));
  }
  /// Let the page cache forget a file. False: it does not.
  [[nodiscard]] bool cool(std::size_t file) const {
    auto const fd = open_regular(files_[file].path);
    ::fsync(fd.get());
    ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    return cold_parts(fd.get(), {{0, kBytes}}) == std::vector{Range{0, kBytes}};
  }
  [[nodiscard]] bool on_local_disk() const { return try_direct(files_[0].path).on_local_disk; }
  [[nodiscard]] bool goes_past_page_cache() const {
    auto const answer = try_direct(files_[0].path);
    return answer.why_refused.empty() && answer.doubt.empty();
  }

  test::TempDir dir_;
  std::vector<CatalogFile> files_;
  std::vector<Extent> const extents_{{1, {1_MiB, kBytes}}, {0, {0, kBytes}}};
  std::optional<std::vector<Extent>> alone_;
};

TEST_F(Choice, OfFilesInThePageCacheIsPread) {
  auto const choice = choose(ReadBackend::automatic);
  EXPECT_EQ(choice.by, ReadBackend::pread);
  EXPECT_THAT(choice.ahead, IsEmpty());
  EXPECT_EQ(choice.why, "the page cache has all of it");
}

TEST_F(Choice, OfAFileThatIsNotThereIsToReadItAhead) {
  if (!cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  auto const choice = choose(ReadBackend::automatic);
  EXPECT_EQ(choice.by, on_local_disk() ? ReadBackend::direct : ReadBackend::io_uring);
  EXPECT_TRUE(choice.uring);
  EXPECT_THAT(choice.ahead, ElementsAre(extents_[0])) << "and what is there by pread";
  EXPECT_THAT(choice.why, HasSubstr("47 % are not in the page cache"));
}

TEST_F(Choice, LeavesWhatOthersReadToThePageCache) {
  if (!cool(0) || !cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  alone_ = {extents_[1]};
  auto const choice = choose(ReadBackend::automatic);
  EXPECT_EQ(choice.ahead, choice.by == ReadBackend::direct ? *alone_ : extents_);
  auto const dropping = choose(ReadBackend::pread, PageCache::drop);
  EXPECT_THAT(dropping.to_drop, ElementsAre(ElementsAre(Range{0, kBytes}), IsEmpty()));
}

/// Files of somebody else, who lets others read them.
class ChoiceOfAGuest : public Choice {
 protected:
  void SetUp() override {
    Choice::SetUp();
    std::filesystem::permissions(std::filesystem::path(files_[0].path).parent_path(),
                                 std::filesystem::perms::owner_all | std::filesystem::perms::others_exec);
    auto const outcome = test::outcome_as_nobody([&] {
      if (auto why_not = why_no_uring_engine(); !why_not.empty()) throw std::runtime_error(why_not);
      auto const fd = open_regular(files_[0].path);
      if (cold_parts(fd.get(), {{0, kBytes}})) throw std::runtime_error("a kernel that tells everybody");
    });
    if (outcome != "done") GTEST_SKIP() << outcome.value_or("only root can become somebody else");
  }
  [[nodiscard]] std::optional<std::string> why(ReadBackend expected, std::vector<Extent> const& ahead,
                                               PageCache cache = PageCache::keep) const {
    return test::outcome_as_nobody([&, expected] {
      auto const choice = choose(ReadBackend::automatic, cache);
      for (auto const& parts : choice.to_drop) {
        if (!parts.empty()) throw std::runtime_error("drops what may have been there");
      }
      if (choice.by != expected || choice.ahead != ahead) throw std::runtime_error("another way: " + choice.why);
      throw IoError(ExitCode::io, choice.why);
    });
  }
};

TEST_F(ChoiceOfAGuest, IsIoUringThroughThePageCacheWarmOrCold) {
  auto const expected = "74 the system tells only who may write to a file what the page cache has of it";
  EXPECT_EQ(why(ReadBackend::io_uring, extents_), expected);
  if (!cool(0) || !cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  EXPECT_EQ(why(ReadBackend::io_uring, extents_), expected);
}

TEST_F(ChoiceOfAGuest, DropsNothingAndSaysSo) {
  EXPECT_THAT(why(ReadBackend::io_uring, extents_, PageCache::drop).value(), HasSubstr("so it is not dropped"));
}

TEST_F(ChoiceOfAGuest, IsPreadWhereIoUringIsForbidden) {
  auto const outcome = test::outcome_as_nobody([&] {
    auto const refused = test::outcome_with_failing(SYS_io_uring_setup, EPERM, [&] {
      auto const choice = choose(ReadBackend::automatic);
      if (choice.by != ReadBackend::pread || !choice.ahead.empty()) throw std::runtime_error("not by pread");
      throw IoError(ExitCode::io, choice.why);
    });
    throw std::runtime_error(refused.value_or(""));
  });
  EXPECT_THAT(outcome.value(), HasSubstr("what the page cache has of it, and io_uring is not to be had: "));
}

TEST_F(Choice, OfAFewCachelessBytesIsPread) {
  if (!cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  std::vector<Extent> const nearly{{1, {0, 3_MiB}}, {0, {0, kBytes}}};
  auto const choice = choose_reads(files_, nearly, {}, nearly);
  EXPECT_EQ(choice.by, ReadBackend::pread);
  EXPECT_EQ(choice.why, "the page cache has nearly all of it");
}

TEST_F(Choice, IsPreadWhereIoUringIsForbidden) {
  if (!cool(0) || !cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  auto const outcome = test::outcome_with_failing(SYS_io_uring_setup, EPERM, [&] {
    auto const choice = choose(ReadBackend::automatic);
    if (choice.by != ReadBackend::pread || !choice.ahead.empty()) throw std::runtime_error("not by pread");
    throw IoError(ExitCode::io, choice.why);
  });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_THAT(*outcome, HasSubstr("100 % are not in the page cache, and io_uring is not to be had: "));
}

TEST_F(Choice, IsWhatWasAskedFor) {
  auto const pread = choose(ReadBackend::pread);
  EXPECT_EQ(pread.by, ReadBackend::pread);
  EXPECT_THAT(pread.ahead, IsEmpty());
  if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  auto const uring = choose(ReadBackend::io_uring);
  EXPECT_EQ(uring.by, ReadBackend::io_uring);
  EXPECT_EQ(uring.ahead, extents_);
  EXPECT_EQ(uring.why, "as asked for");
}

TEST_F(Choice, OfDirectReadsIsThoseWhereTheyGoPastThePageCache) {
  if (!goes_past_page_cache()) GTEST_SKIP() << "this file system lets nobody past its cache";
  auto const choice = choose(ReadBackend::direct);
  EXPECT_EQ(choice.by, ReadBackend::direct);
  EXPECT_EQ(choice.ahead, extents_);
  EXPECT_THAT(choice.why, StartsWith("as asked for"));
  EXPECT_THAT(choice.why, Not(HasSubstr(files_[0].path)));
}

TEST_F(Choice, OfDirectReadsLeavesFilesToPreadThatRefuseThemAndDropsThese) {
  if (!goes_past_page_cache()) GTEST_SKIP() << "this file system lets nobody past its cache";
  if (!cool(0) || !cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  Refusing const refusing("/b");
  auto const choice = choose(ReadBackend::direct, PageCache::drop);
  EXPECT_EQ(choice.by, ReadBackend::direct);
  EXPECT_THAT(choice.ahead, ElementsAre(extents_[1]));
  EXPECT_THAT(choice.why, HasSubstr("not all can be (" + files_[1].path + ": Invalid argument)"));
  EXPECT_THAT(choice.to_drop, ElementsAre(IsEmpty(), ElementsAre(Range{1_MiB, kBytes})));
}

TEST_F(Choice, OfDirectReadsThatAllFilesRefuseIsPread) {
  Refusing const refusing("");
  auto const choice = choose(ReadBackend::direct);
  EXPECT_EQ(choice.by, ReadBackend::pread);
  EXPECT_THAT(choice.ahead, IsEmpty());
  EXPECT_THAT(choice.why, HasSubstr("nothing can be read past the page cache: " + files_[1].path + ": "));
}

TEST_F(Choice, OfDirectReadsInMemoryIsPread) {
  std::string const path = "/dev/shm/rankslice-read-choice-test";
  std::ofstream(path) << std::string(kBytes, 'x');
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "there is no /dev/shm";
  files_[0].path = files_[1].path = path;
  auto const choice = choose(ReadBackend::direct, PageCache::drop);
  std::filesystem::remove(path);
  EXPECT_EQ(choice.by, ReadBackend::pread);
  EXPECT_THAT(choice.why, HasSubstr("past the page cache: " + path + ": "));
}

TEST_F(Choice, IsIoUringThroughThePageCacheWhereReadsPastItFail) {
  if (!cool(0) || !cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  if (!why_no_uring_engine().empty()) GTEST_SKIP() << why_no_uring_engine();
  if (!on_local_disk()) GTEST_SKIP() << "not on a local disk";
  Refusing const refusing("/b");
  auto const choice = choose(ReadBackend::automatic);
  EXPECT_EQ(choice.by, ReadBackend::io_uring);
  EXPECT_EQ(choice.ahead, extents_);
  EXPECT_THAT(choice.why, HasSubstr("nor read past it: " + files_[1].path + ": Invalid argument"));
}

TEST_F(Choice, OfIoUringWhereItIsForbiddenIsAnError) {
  auto const outcome =
      test::outcome_with_failing(SYS_io_uring_setup, EPERM, [&] { static_cast<void>(choose(ReadBackend::io_uring)); });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_THAT(*outcome, HasSubstr("74 files cannot be read by io_uring: "));
}

TEST_F(Choice, OfDirectReadsWhereIoUringIsForbiddenIsOneAfterTheOther) {
  if (!goes_past_page_cache()) GTEST_SKIP() << "this file system lets nobody past its cache";
  auto const outcome = test::outcome_with_failing(SYS_io_uring_setup, EPERM, [&] {
    auto const choice = choose(ReadBackend::direct);
    if (choice.by != ReadBackend::direct || choice.uring || choice.ahead != extents_)
      throw std::runtime_error("not so");
  });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_EQ(*outcome, "done");
}

TEST_F(Choice, ToDropIsWhatThePageCacheDidNotHave) {
  if (!cool(1)) GTEST_SKIP() << "this file system keeps files in memory";
  EXPECT_THAT(choose(ReadBackend::pread).to_drop, IsEmpty());
  EXPECT_THAT(choose(ReadBackend::pread, PageCache::drop).to_drop,
              ElementsAre(IsEmpty(), ElementsAre(Range{1_MiB, kBytes})));
  if (!goes_past_page_cache()) GTEST_SKIP() << "this file system lets nobody past its cache";
  EXPECT_THAT(choose(ReadBackend::direct, PageCache::drop).to_drop, Each(IsEmpty())) << "nothing gets there";
}

TEST_F(Choice, OfAFileThatIsGoneIsAnError) {
  files_[1].path = dir_.file("gone");
  EXPECT_THROW((void)choose(ReadBackend::automatic), IoError);
}

}  // namespace
}  // namespace rankslice
