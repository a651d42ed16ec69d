#pragma once

#include <cstdint>

namespace rankslice {

/// The factors of digest/1 (`digest.md`), for the host's loops and the kernels of GPUs.

/// π(i; m, k): a permutation of the numbers below 2^31.
constexpr std::uint32_t permuted(std::uint32_t i, std::uint32_t m, std::uint32_t k) {
  constexpr std::uint32_t kMask = 0x7FFF'FFFF;
  auto x = (i * m + k) & kMask;
  x ^= x >> 15;
  x = (x * 0x2C1B'3C6DU) & kMask;
  x ^= x >> 13;
  x = (x * 0x297A'2D39U) & kMask;
  return x ^ (x >> 16);
}

/// Which of the two axes of a matrix of words a factor is for.
enum class DigestAxis : std::uint8_t { row, column };

/// F_r or F_c of a position below 2^31.
constexpr std::uint32_t digest_factor(DigestAxis axis, std::uint64_t position) {
  auto const i = static_cast<std::uint32_t>(position);
  auto const number = axis == DigestAxis::row ? permuted(i, 0x5851'F42D, 0x1319'8A2E)  //
                                              : permuted(i, 0x4C95'7F2D, 0x0370'7344);
  return 2 * number + 1;
}

/// A(e): the odd weight of an entry.
constexpr std::uint64_t expert_factor(std::uint64_t e) {
  auto x = 0x243F'6A88'85A3'08D3U + e;
  x = (x ^ (x >> 30)) * 0xBF58'476D'1CE4'E5B9U;
  x = (x ^ (x >> 27)) * 0x94D0'49BB'1331'11EBU;
  return 2 * (x ^ (x >> 31)) + 1;
}

}  // namespace rankslice
