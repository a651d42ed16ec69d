#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

#include "core/literals.hpp"

namespace rankslice::test {

/// What the system can still give out without swapping.
inline std::uint64_t available_memory() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name;
  std::uint64_t kib = 0;
  for (std::string unit; meminfo >> name >> kib; std::getline(meminfo, unit)) {
    if (name == "MemAvailable:") return kib << 10;
  }
  return 0;
}

/// Rank 0 of two sends more than 2 GiB to rank 1, and every 8 of its bytes are others. Takes 4 GiB and a little on one
/// machine; skipped, on both ranks, where there is no room for that.
inline void expect_a_message_over_2_gib_arrives(Communicator& world) {
  constexpr auto kNeeded = 6_GiB;
  constexpr std::size_t kWords = 2_GiB / sizeof(std::uint64_t) + 12'345;
  std::uint64_t available = available_memory();
  world.all_reduce(std::span(&available, 1), Reduce::min);
  if (available < kNeeded) GTEST_SKIP() << "needs 6 GiB of memory, there are " << (available >> 30);
  auto const word = [](std::size_t i) { return (i + 1) * 0x9E3779B97F4A7C15U; };
  std::vector<std::uint64_t> words(kWords);
  auto const bytes = std::as_writable_bytes(std::span(words)).first(kWords * sizeof(std::uint64_t) - 3);
  if (world.rank() == 0) {
    for (std::size_t i = 0; i < kWords; ++i) words[i] = word(i);
    world.start_send(bytes, 1)->wait();
    return;
  }
  world.start_receive(bytes, 0)->wait();
  std::size_t wrong = 0;
  for (std::size_t i = 0; i + 1 < kWords; ++i) wrong += words[i] != word(i) ? 1U : 0U;
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(words.back(), word(kWords - 1) & 0xFF'FFFF'FFFFU);  // five bytes of the last word came
}

}  // namespace rankslice::test
