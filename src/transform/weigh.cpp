#include "transform/weigh.hpp"

#include <cstring>
#include <type_traits>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace rankslice {

namespace {

template <typename Word, std::size_t Stride>
[[gnu::always_inline]] inline std::uint64_t weigh(std::byte const* words, std::uint32_t const* factors,
                                                  std::size_t count) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, words + i * Stride, sizeof(Word));
    sum += std::uint64_t{factors[i]} * word + factors[i];
  }
  return sum;
}

template <typename Word, std::size_t Stride>
std::uint64_t weigh_portable(std::byte const* words, std::uint32_t const* factors, std::size_t count) {
  return weigh<Word, Stride>(words, factors, count);
}

#ifdef __x86_64__

template <typename Word, std::size_t Stride>
[[gnu::target("avx2")]] std::uint64_t weigh_avx2(std::byte const* words, std::uint32_t const* factors,
                                                 std::size_t count) {
  return weigh<Word, Stride>(words, factors, count);
}

// By hand for the type that nearly all weights have: the compiler's own spends most of its time on shuffles. A lane of
// 64 bits takes two neighbours, whose factors are multiplied in its low half one after the other.
template <>
[[gnu::target("avx2")]] std::uint64_t weigh_avx2<std::uint16_t, 2>(std::byte const* words, std::uint32_t const* factors,
                                                                   std::size_t count) {
  auto const ones = _mm256_set1_epi64x(1);
  auto const low_word = _mm256_set1_epi64x(0xFFFF);
  auto even = _mm256_setzero_si256();
  auto odd = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    auto const pairs = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<__m128i const*>(words + 2 * i)));
    auto const factor_pairs = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(factors + i));
    auto const even_words = _mm256_add_epi64(_mm256_and_si256(pairs, low_word), ones);
    auto const odd_words = _mm256_add_epi64(_mm256_srli_epi64(pairs, 16), ones);
    even = _mm256_add_epi64(even, _mm256_mul_epu32(factor_pairs, even_words));
    odd = _mm256_add_epi64(odd, _mm256_mul_epu32(_mm256_srli_epi64(factor_pairs, 32), odd_words));
  }
  alignas(32) std::uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(even, odd));
  return lanes[0] + lanes[1] + lanes[2] + lanes[3] + weigh<std::uint16_t, 2>(words + 2 * i, factors + i, count - i);
}

template <typename Word, std::size_t Stride>
Weigh kernel(InstructionSet instructions) {
  return instructions == InstructionSet::avx2 ? weigh_avx2<Word, Stride> : weigh_portable<Word, Stride>;
}

#else

template <typename Word, std::size_t Stride>
Weigh kernel(InstructionSet) {
  return weigh_portable<Word, Stride>;
}

#endif

}  // namespace

InstructionSet instruction_set() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) return InstructionSet::avx2;
#endif
  return InstructionSet::portable;
}

Weigh weigh_kernel(std::uint64_t word_bytes, std::uint64_t stride, InstructionSet instructions) {
  if (word_bytes == 1) return kernel<std::uint8_t, 1>(instructions);
  if (word_bytes == 2) return kernel<std::uint16_t, 2>(instructions);
  if (stride == 4) return kernel<std::uint32_t, 4>(instructions);
  return kernel<std::uint32_t, 8>(instructions);
}

}  // namespace rankslice
