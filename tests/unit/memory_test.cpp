#include "io/memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "core/literals.hpp"

namespace {

thread_local int allocations_left = -1;  // until one fails; below 0 none does

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (auto* const memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace rankslice {

namespace {

bool is_aligned(std::byte const* data, std::uint64_t alignment) {
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0;
}

std::uint64_t mapped_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "VmSize:") continue;
    std::uint64_t kib = 0;
    status >> kib;
    return kib;
  }
  ADD_FAILURE() << "no VmSize";
  return 0;
}

TEST(AllocateHost, GivesTheBytesAskedForAlignedForTheirSize) {
  for (std::uint64_t const bytes :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{63}, 4_KiB, 2_MiB - 1, 2_MiB, 2_MiB + 1, 7_MiB + 12345}) {
    auto const buffer = allocate_host(bytes);
    EXPECT_EQ(buffer.bytes, bytes);
    ASSERT_NE(buffer.data, nullptr) << bytes;
    EXPECT_TRUE(is_aligned(buffer.data.get(), bytes < 2_MiB ? 64 : 2_MiB)) << bytes;
  }
}

TEST(AllocateHost, EveryByteCanBeWrittenAndRead) {
  for (std::uint64_t const bytes : {std::uint64_t{100}, 2_MiB, 6_MiB + 1}) {
    auto const buffer = allocate_host(bytes);
    std::ranges::fill(buffer.span(), std::byte{0xa5});
    EXPECT_TRUE(std::ranges::all_of(buffer.span(), [](auto byte) { return byte == std::byte{0xa5}; }));
  }
}

TEST(AllocateHost, BuffersAreApart) {
  auto const first = allocate_host(3_MiB);
  auto const second = allocate_host(3_MiB);
  std::ranges::fill(first.span(), std::byte{1});
  std::ranges::fill(second.span(), std::byte{2});
  EXPECT_TRUE(std::ranges::all_of(first.span(), [](auto byte) { return byte == std::byte{1}; }));
}

TEST(AllocateHost, CopiesShareTheMemoryAndTheLastReleasesIt) {
  auto const before = mapped_kib();
  {
    auto copy = Buffer{};
    {
      auto const buffer = allocate_host(64_MiB);
      copy = buffer;
    }
    EXPECT_GE(mapped_kib(), before + 64 * 1024);
    copy.span().back() = std::byte{1};
  }
  EXPECT_LT(mapped_kib(), before + 8 * 1024);
}

TEST(AllocateHost, ManyAllocationsGrowNothing) {
  static_cast<void>(allocate_host(1_MiB));
  auto const before = mapped_kib();
  for (int i = 0; i < 2000; ++i) {
    auto const large = allocate_host(2_MiB + static_cast<std::uint64_t>(i) * 4097);
    auto const small = allocate_host(static_cast<std::uint64_t>(i));
  }
  EXPECT_LT(mapped_kib(), before + 8 * 1024);
}

std::uint64_t resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "VmRSS:") continue;
    std::uint64_t kib = 0;
    status >> kib;
    return kib;
  }
  ADD_FAILURE() << "no VmRSS";
  return 0;
}

TEST(AllocateHost, ManyTensorsAtOnceAreApartAndAlignedAndOfTheSizesAskedFor) {
  std::vector<std::uint64_t> const sizes{3_MiB, 0, 128_KiB - 1, 128_KiB, 2_MiB, 1, 5_MiB + 1, 64, 130_KiB + 7};
  auto const buffers = allocate_host(sizes, HugePages::automatic);
  ASSERT_EQ(buffers.size(), sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(buffers[i].bytes, sizes[i]);
    EXPECT_TRUE(is_aligned(buffers[i].data.get(), 64)) << i;
    std::ranges::fill(buffers[i].span(), static_cast<std::byte>(i + 1));
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    auto const own = static_cast<std::byte>(i + 1);
    EXPECT_TRUE(std::ranges::all_of(buffers[i].span(), [own](auto byte) { return byte == own; })) << i;
  }
}

TEST(AllocateHost, TensorsSideBySideTakeNoMoreThanTheirPages) {
  std::vector<std::uint64_t> const sizes(40, 2_MiB + 128_KiB + 1);
  auto const before = mapped_kib();
  auto const buffers = allocate_host(sizes, HugePages::automatic);
  EXPECT_LT(mapped_kib(), before + 40 * (2048 + 128 + 4) + 1024);
}

TEST(AllocateHost, EachTensorOfAMappingGivesItsPagesBackAloneAndTheOthersKeepTheirBytes) {
  std::vector<std::uint64_t> const sizes(24, 3_MiB + 4_KiB);  // so that neighbours share a huge page
  auto buffers = allocate_host(sizes, HugePages::automatic);
  for (std::size_t i = 0; i < sizes.size(); ++i) std::ranges::fill(buffers[i].span(), static_cast<std::byte>(i + 1));
  auto left = resident_kib();
  for (auto const i : std::vector<std::size_t>{0, 23, 12, 11, 1, 5, 7}) {
    buffers[i] = {};
    EXPECT_LT(resident_kib() + 3072 - 64, left) << i;
    left = resident_kib();
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (!buffers[i].data) continue;
    auto const own = static_cast<std::byte>(i + 1);
    EXPECT_TRUE(std::ranges::all_of(buffers[i].span(), [own](auto byte) { return byte == own; })) << i;
  }
}

/// How often the system did something with huge pages, as it counts for all processes.
std::uint64_t huge_page_count(std::string const& event) {
  std::ifstream counts("/proc/vmstat");
  for (std::string word; counts >> word;) {
    std::uint64_t count = 0;
    if (word == event && counts >> count) return count;
  }
  return 0;
}

TEST(AllocateHost, TakesHugePagesApartThatATensorSharesWithOthersWhenItIsFreed) {
  auto const given = huge_page_count("thp_fault_alloc");
  std::vector<std::uint64_t> const sizes(24, 3_MiB + 4_KiB);
  auto buffers = allocate_host(sizes, HugePages::automatic);
  for (auto& buffer : buffers) std::ranges::fill(buffer.span(), std::byte{1});
  if (huge_page_count("thp_fault_alloc") < given + sizes.size()) GTEST_SKIP() << "there are no huge pages here";
  auto const split = huge_page_count("thp_split_page");
  for (std::size_t i = 0; i < sizes.size(); i += 2) buffers[i] = {};
  EXPECT_GE(huge_page_count("thp_split_page"), split + sizes.size() / 2) << "or they are used up until all are freed";
}

TEST(AllocateHost, WithoutMemoryForTheOwnersOfSomeNothingStays) {
  std::vector<std::uint64_t> const sizes(20, 4_MiB);
  auto const before = mapped_kib();
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    allocations_left = failures;
    failed = false;
    try {
      static_cast<void>(allocate_host(sizes, HugePages::automatic));
    } catch (std::bad_alloc const&) {
      failed = true;
    }
    allocations_left = -1;
    ASSERT_LT(mapped_kib(), before + 2048) << failures;
  }
  EXPECT_GT(failures, 20) << "every owner was refused once";
}

TEST(AllocateHost, MoreThanTheAddressSpaceIsBadAlloc) {
  EXPECT_THROW(static_cast<void>(allocate_host(UINT64_MAX)), std::bad_alloc);
  EXPECT_THROW(static_cast<void>(allocate_host(std::uint64_t{1} << 60)), std::bad_alloc);
  std::vector<std::uint64_t> const together(8, std::uint64_t{1} << 61);
  EXPECT_THROW(static_cast<void>(allocate_host(together, HugePages::automatic)), std::bad_alloc);
}

}  // namespace

}  // namespace rankslice
