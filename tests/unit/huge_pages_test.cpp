#include "io/huge_pages.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/memory.hpp"

namespace rankslice {

namespace {

using testing::HasSubstr;

/// A buffer that stands somewhere, and is not looked into.
Buffer at(std::uint64_t address, std::uint64_t bytes) {
  return {{reinterpret_cast<std::byte*>(address), [](std::byte*) {}}, bytes};
}

std::string mapping(std::uint64_t begin, std::uint64_t end, std::uint64_t huge_kib) {
  return fmt::format("{:x}-{:x} rw-p 00000000 00:00 0 \nSize: 1 kB\nAnonHugePages: {:>8} kB\nVmFlags: rd wr hg \n",
                     begin, end, huge_kib);
}

HugePageShare share(std::vector<Buffer> const& memory, std::string const& smaps, std::uint64_t huge_page = 2_MiB) {
  std::istringstream text(smaps);
  return share_on_huge_pages(memory, text, huge_page);
}

constexpr std::uint64_t kBase = 0x7f0000000000;  // where a huge page begins

TEST(HugePages, OnlyWholeHugePagesOfATensorCanBe) {
  EXPECT_EQ(share({at(kBase, 3_MiB)}, "").possible, 2_MiB);
  EXPECT_EQ(share({at(kBase + 4_KiB, 3_MiB)}, "").possible, 0);
  EXPECT_EQ(share({at(kBase + 4_KiB, 4_MiB - 4_KiB)}, "").possible, 2_MiB);
  EXPECT_EQ(share({at(kBase + 64, 8_MiB)}, "").possible, 0) << "of the heap";
}

TEST(HugePages, TensorsThatTouchShareThem) {
  std::vector const memory{at(kBase + 3_MiB, 1_MiB), at(kBase, 1_MiB - 5), at(kBase + 1_MiB, 2_MiB)};
  EXPECT_EQ(share(memory, "").possible, 4_MiB);
}

TEST(HugePages, CountsThoseOfTheMappingsThatHoldTheTensorsOnly) {
  auto const smaps = mapping(kBase - 8_MiB, kBase, 8192) + mapping(kBase, kBase + 4_MiB, 2048) +
                     mapping(kBase + 4_MiB, kBase + 6_MiB, 2048) + mapping(kBase + 6_MiB, kBase + 16_MiB, 8192);
  auto const found = share({at(kBase, 6_MiB)}, smaps);
  EXPECT_EQ(found.possible, 6_MiB);
  EXPECT_EQ(found.found, 4_MiB);
}

TEST(HugePages, OfAMappingThatIsSharedWithOtherMemoryCountAtMostAsTheTensorsCouldHave) {
  auto const found = share({at(kBase, 4_MiB), at(kBase + 8_MiB, 1_MiB)}, mapping(kBase - 8_MiB, kBase + 16_MiB, 16384));
  EXPECT_EQ(found.possible, 4_MiB);
  EXPECT_EQ(found.found, 4_MiB);
}

TEST(HugePages, AreAsLargeAsTheSystemSays) {
  EXPECT_EQ(share({at(kBase, 1023_MiB)}, "", 512_MiB).possible, 512_MiB);
  auto const root = std::filesystem::path(testing::TempDir()) / "huge_page_size";
  auto const folder = root / "sys/kernel/mm/transparent_hugepage";
  EXPECT_EQ(huge_page_bytes(root), 2_MiB) << "where it does not say so";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "hpage_pmd_size") << "536870912\n";
  EXPECT_EQ(huge_page_bytes(root), 512_MiB);
  std::filesystem::remove_all(root);
}

TEST(HugePages, WhereTheSystemSaysNeverOrNothingThereAreNone) {
  auto const root = std::filesystem::path(testing::TempDir()) / "huge_pages_root";
  auto const folder = root / "sys/kernel/mm/transparent_hugepage";
  EXPECT_THAT(why_no_huge_pages(root), HasSubstr("does not say"));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "enabled") << "always madvise [never]\n";
  EXPECT_THAT(why_no_huge_pages(root), HasSubstr("transparent_hugepage/enabled says never"));
  std::ofstream(folder / "enabled") << "always [madvise] never\n";
  EXPECT_EQ(why_no_huge_pages(root), "");
  std::filesystem::remove_all(root);
}

class OnThisSystem : public testing::Test {
 protected:
  void SetUp() override {
    if (auto const why_not = why_no_huge_pages(); !why_not.empty()) GTEST_SKIP() << why_not;
  }
  void TearDown() override { ::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0); }
};

TEST_F(OnThisSystem, AProcessThatMayHaveNoneIsToldSoBeforeAnythingIsMapped) {
  ASSERT_EQ(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
  try {
    static_cast<void>(allocate_host(4_MiB, HugePages::on));
    FAIL() << "expected UsageError";
  } catch (UsageError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("huge pages were asked for, and there are none: this process may have none"));
  }
  EXPECT_EQ(allocate_host(4_MiB, HugePages::automatic).bytes, 4_MiB);
}

TEST_F(OnThisSystem, TensorsThatWereWrittenStandOnThemWhereAskedFor) {
  auto const memory = allocate_host(std::vector<std::uint64_t>{3_MiB, 200_KiB, 9_MiB}, HugePages::on);
  EXPECT_THROW(require_on_huge_pages(memory), UsageError) << "nothing was written yet";
  for (auto const& buffer : memory) std::ranges::fill(buffer.span(), std::byte{1});
  EXPECT_NO_THROW(require_on_huge_pages(memory));
}

TEST_F(OnThisSystem, TensorsThatAreNotToBeOnThemAreNot) {
  auto const memory = allocate_host(std::vector<std::uint64_t>{3_MiB, 200_KiB, 9_MiB}, HugePages::off);
  for (auto const& buffer : memory) std::ranges::fill(buffer.span(), std::byte{1});
  std::ifstream smaps("/proc/self/smaps");
  EXPECT_EQ(share_on_huge_pages(memory, smaps).found, 0);
  try {
    require_on_huge_pages(memory);
    FAIL() << "expected UsageError";
  } catch (UsageError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("the system gave 0 of 6"));
  }
}

}  // namespace

}  // namespace rankslice
