#include "io/memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <new>
#include <string>

#include "core/literals.hpp"

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

TEST(AllocateHost, MoreThanTheAddressSpaceIsBadAlloc) {
  EXPECT_THROW(static_cast<void>(allocate_host(UINT64_MAX)), std::bad_alloc);
  EXPECT_THROW(static_cast<void>(allocate_host(std::uint64_t{1} << 60)), std::bad_alloc);
}

}  // namespace

}  // namespace rankslice
