// What the page cache has of a file, and that it forgets what was only read in passing.

#include "io/page_cache.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>

#include "core/literals.hpp"
#include "io/positional.hpp"
#include "support/failing_syscall.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Optional;

constexpr auto kFileBytes = 6_MiB + 100;

class PageCacheOfAFile : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(path_, std::ios::binary).write(reinterpret_cast<char const*>(bytes_.data()), std::ssize(bytes_));
    fd_ = open_regular(path_);
    ASSERT_EQ(::fsync(fd_.get()), 0);
    ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
    ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_RANDOM);  // no reading ahead: what is read is there, and no more
    if (cold() != std::vector{whole_}) GTEST_SKIP() << "this file system keeps files in memory";
  }
  [[nodiscard]] std::optional<std::vector<Range>> cold() const { return cold_parts(fd_.get(), {whole_}); }
  void warm(Range bytes) const {
    test::Bytes out(bytes.size());
    ASSERT_EQ(::pread(fd_.get(), out.data(), out.size(), static_cast<::off_t>(bytes.begin)), std::ssize(out));
  }

  static constexpr Range whole_{0, kFileBytes};
  test::TempDir dir_;
  std::string const path_ = dir_.file("data");
  test::Bytes const bytes_ = test::random_bytes(kFileBytes, 1);
  UniqueFd fd_;
};

TEST_F(PageCacheOfAFile, HasWhatWasRead) {
  warm({1_MiB, 3_MiB});
  EXPECT_THAT(cold(), Optional(ElementsAre(Range{0, 1_MiB}, Range{3_MiB, kFileBytes})));
  EXPECT_THAT(cold_parts(fd_.get(), {{1_MiB, 2_MiB}, {2_MiB + 5, 3_MiB}}), Optional(IsEmpty()));
  EXPECT_THAT(cold_parts(fd_.get(), {{4_MiB, 4_MiB}, {5_MiB + 1, 5_MiB + 2}}),
              Optional(ElementsAre(Range{5_MiB + 1, 5_MiB + 2})));
  warm(whole_);
  EXPECT_THAT(cold(), Optional(IsEmpty()));
}

TEST_F(PageCacheOfAFile, CountsAMiBAsThereWithThreeQuartersOfItsPages) {
  warm({0, 512_KiB});
  EXPECT_THAT(cold_parts(fd_.get(), {{0, 1_MiB}}), Optional(ElementsAre(Range{0, 1_MiB})));
  warm({512_KiB, 768_KiB});
  EXPECT_THAT(cold_parts(fd_.get(), {{0, 1_MiB}}), Optional(IsEmpty()));
}

// cachestat(2) came with Linux 6.5.
TEST_F(PageCacheOfAFile, IsLookedAtOnOlderSystemsToo) {
  warm({1_MiB, 3_MiB});
  std::vector<Range> const expected{{0, 1_MiB}, {3_MiB, kFileBytes}};
  auto const outcome = test::outcome_with_failing(451, ENOSYS, [&] {
    if (cold() != expected) throw std::runtime_error("other parts");
  });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_EQ(*outcome, "done");
}

// A byte for each page of 64 GiB would be 16 MiB.
TEST_F(PageCacheOfAFile, IsLookedAtInBoundedMemory) {
  constexpr auto kHoles = 64_GiB;
  auto const path = dir_.file("holes");
  std::ofstream(path).close();
  if (::truncate(path.c_str(), kHoles) != 0) GTEST_SKIP() << "this file system has no files so large";
  auto const fd = open_regular(path);
  auto const outcome = test::outcome_with_failing(451, ENOSYS, [&] {
    rusage before{}, after{};
    ::getrusage(RUSAGE_SELF, &before);
    if (cold_parts(fd.get(), {{0, kHoles}}) != std::vector{Range{0, kHoles}}) throw std::runtime_error("other parts");
    ::getrusage(RUSAGE_SELF, &after);
    if (after.ru_maxrss - before.ru_maxrss > 4096) throw std::runtime_error("took more than 4 MiB");
  });
  if (!outcome) GTEST_SKIP() << "system calls cannot be filtered here";
  EXPECT_EQ(*outcome, "done");
}

// To others mincore(2) says that all pages are there; cachestat(2) tells them the truth, or refuses, with the kernel.
TEST_F(PageCacheOfAFile, IsNotGuessedAtByWhoNeitherOwnsNorMayWriteToIt) {
  auto const see_nothing = [&] {
    auto const found = cold();
    if (found && *found != std::vector{whole_}) throw std::runtime_error("cold pages count as there");
  };
  auto const outcome = test::outcome_as_nobody(see_nothing);
  if (!outcome) GTEST_SKIP() << "only root can become somebody else";
  EXPECT_EQ(*outcome, "done");
  auto const without_cachestat = test::outcome_as_nobody([&] {
    auto const result = test::outcome_with_failing(451, ENOSYS, [&] {
      if (cold()) throw std::runtime_error("known");
    });
    if (result.value_or("done") != "done") throw std::runtime_error(*result);
  });
  EXPECT_EQ(without_cachestat, "done");
}

TEST_F(PageCacheOfAFile, IsToldToWhoMayWriteToIt) {
  ASSERT_EQ(::fchmod(fd_.get(), 0666), 0);
  auto const outcome = test::outcome_as_nobody([&] {
    if (cold() != std::vector{whole_}) throw std::runtime_error("not known");
  });
  if (!outcome) GTEST_SKIP() << "only root can become somebody else";
  EXPECT_EQ(*outcome, "done");
}

TEST_F(PageCacheOfAFile, ForgetsWhatADroppingReaderRead) {
  {
    DroppingReader reader(open_in_order(path_), {whole_});
    test::Bytes out(100'000);
    for (std::uint64_t at = 0; at < kFileBytes; at += out.size()) {
      auto const part = std::span(out).first(std::min<std::uint64_t>(out.size(), kFileBytes - at));
      reader.read(part, at);
      ASSERT_TRUE(std::ranges::equal(part, std::span(bytes_).subspan(at, part.size()))) << at;
    }
  }
  EXPECT_THAT(cold_parts(fd_.get(), {{0, 6_MiB}}), Optional(ElementsAre(Range{0, 6_MiB})));
}

TEST_F(PageCacheOfAFile, KeepsWhatWasThereBeforeADroppingReaderCame) {
  warm({1_MiB, 2_MiB});
  {
    DroppingReader reader(open_in_order(path_), cold().value());
    test::Bytes out(kFileBytes);
    reader.read(out, 0);
  }
  EXPECT_THAT(cold_parts(fd_.get(), {{0, 6_MiB}}), Optional(ElementsAre(Range{0, 1_MiB}, Range{2_MiB, 6_MiB})));
}

TEST_F(PageCacheOfAFile, ForgetsWhatADroppingReaderReadInAnyOrder) {
  {
    DroppingReader reader(open_in_order(path_), {whole_});
    test::Bytes out(100'000);
    for (std::uint64_t at = 60 * out.size(); at > 0; at -= out.size()) reader.read(out, at - out.size());
  }
  EXPECT_THAT(cold_parts(fd_.get(), {{0, 5_MiB}}), Optional(ElementsAre(Range{0, 5_MiB})));
}

TEST_F(PageCacheOfAFile, KeepsWhatOthersReadOfItMeanwhile) {
  {
    DroppingReader reader(open_in_order(path_), {whole_});
    test::Bytes out(1_MiB);
    reader.read(out, 0);
    warm({5_MiB, 6_MiB});
  }
  EXPECT_THAT(cold_parts(fd_.get(), {{0, 6_MiB}}), Optional(ElementsAre(Range{0, 5_MiB})));
}

std::ptrdiff_t open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
}

TEST_F(PageCacheOfAFile, TakesADroppingReaderNoDescriptorOfItsOwn) {
  auto file = open_in_order(path_);
  auto const before = open_descriptors();
  DroppingReader reader(std::move(file), {whole_});
  test::Bytes out(kFileBytes);
  reader.read(out, 0);
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace rankslice
