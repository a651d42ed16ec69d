#pragma once

#include <cstddef>
#include <cstdint>

namespace rankslice {

/// Σ factors[i]·(word i + 1) over `count` little-endian words, at any address.
using Weigh = std::uint64_t (*)(std::byte const* words, std::uint32_t const* factors, std::size_t count);

enum class InstructionSet { portable, avx2 };

/// The best that this machine has.
[[nodiscard]] InstructionSet instruction_set();

/// For words of `word_bytes` (1, 2 or 4) that lie `stride` bytes apart: `word_bytes`, or 8 for halves of elements of 8.
[[nodiscard]] Weigh weigh_kernel(std::uint64_t word_bytes, std::uint64_t stride, InstructionSet instructions);

}  // namespace rankslice
