#include "comm/staging_ring.hpp"

#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <utility>
#include <vector>

namespace rankslice {
namespace {

TEST(StagingRing, PiecesNeverOverlapAndHaveRoomAgainOnceGivenBack) {
  std::mt19937 random(1);  // NOLINT: the same numbers every time
  std::vector<std::byte> memory(1024);
  StagingRing ring(memory);
  struct Taken {
    std::size_t begin, end, mark;
  };
  std::deque<Taken> taken;
  std::size_t refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::size_t const bytes = 1 + random() % 512;
    auto* const piece = ring.take(bytes);
    if (piece == nullptr) {
      ++refused;
      ASSERT_FALSE(taken.empty()) << bytes << " bytes have no room in an empty ring";
      ring.give_back_until(taken.front().mark);
      taken.pop_front();
      continue;
    }
    auto const begin = static_cast<std::size_t>(piece - memory.data());
    ASSERT_EQ(begin % StagingRing::kAlignment, 0U);
    ASSERT_LE(begin + bytes, memory.size());
    for (auto const& other : taken) ASSERT_TRUE(begin + bytes <= other.begin || other.end <= begin);
    taken.push_back({begin, begin + bytes, ring.mark()});
  }
  EXPECT_GT(refused, 1000U);
}

TEST(StagingRing, WhatIsForgottenWasNeverTaken) {
  std::vector<std::byte> memory(64);
  StagingRing ring(memory);
  ASSERT_NE(ring.take(32), nullptr);
  auto const before = ring.mark();
  ASSERT_NE(ring.take(32), nullptr);
  ASSERT_EQ(ring.take(1), nullptr);
  ring.forget_since(before);
  EXPECT_EQ(ring.take(32), memory.data() + 32);
}

}  // namespace
}  // namespace rankslice
