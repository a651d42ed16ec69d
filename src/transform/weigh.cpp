#include "transform/weigh.hpp"

#include <algorithm>
#include <cstring>

// This file is compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "transform/weigh.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace rankslice {
namespace {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// What a kernel gives, without the + 1 of every word.
template <typename Word>
HWY_ATTR std::uint64_t weigh_one_by_one(std::byte const* words, std::size_t stride, std::uint32_t const* factors,
                                        std::size_t count) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, words + i * stride, sizeof(Word));
    sum += std::uint64_t{factors[i]} * word;
  }
  return sum;
}

HWY_ATTR std::uint64_t sum_of(std::uint32_t const* factors, std::size_t count) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += factors[i];
  return sum;
}

HWY_ATTR void fill_factors(DigestAxis axis, std::uint64_t first, std::size_t count, std::uint32_t* whole,
                           std::array<std::int16_t*, 3> const& pieces) {
  auto const begin = static_cast<std::uint32_t>(first);
  auto const fill = [&](DigestAxis of) HWY_ATTR {
    for (std::size_t i = 0; i < count; ++i) whole[i] = digest_factor(of, begin + static_cast<std::uint32_t>(i));
  };
  if (axis == DigestAxis::row) {
    fill(DigestAxis::row);
  } else {
    fill(DigestAxis::column);
  }
  for (std::size_t piece = 0; piece < 3; ++piece) {
    auto* const to = pieces[piece];
    for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<std::int16_t>(whole[i] >> (11 * piece) & 0x7FF);
  }
}

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128

template <typename Word>
HWY_ATTR std::uint64_t weigh_line(std::byte const* words, FactorRun const& factors, std::size_t count, std::uint64_t) {
  return weigh_one_by_one<Word>(words, sizeof(Word), factors.whole, count);
}

#else

// Words of 1 and 2 bytes are multiplied as signed numbers of 16 bits with pieces of the factors, so that pairs of
// products add up in 32 bits: |piece| < 2^11 and |word| <= 2^15, so 16 pairs stay below 2^31.
constexpr std::size_t kPairs = 16;
constexpr std::uint32_t kBias = 0x8000;  // makes an unsigned word a signed one
constexpr std::size_t kAhead = 4096;     // bytes: what is asked for so early is in the cache when it is needed

using Signed = hn::ScalableTag<std::int16_t>;
using Sums = hn::Repartition<std::int32_t, Signed>;
using WideSums = hn::Repartition<std::int64_t, Signed>;

HWY_INLINE hn::Vec<Signed> load_words(Signed d, std::uint16_t const* words) {
  hn::Repartition<std::uint16_t, Signed> const unsigned_words;
  auto const bias = hn::Set(unsigned_words, static_cast<std::uint16_t>(kBias));
  return hn::BitCast(d, hn::Xor(hn::LoadU(unsigned_words, words), bias));
}

HWY_INLINE hn::Vec<Signed> load_words(Signed d, std::uint8_t const* words) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<std::uint8_t, Signed>(), words));
}

HWY_INLINE hn::Vec<WideSums> widened(hn::Vec<Sums> sums) {
  WideSums const wide;
  hn::Half<Sums> const half;
  return hn::Add(hn::PromoteTo(wide, hn::LowerHalf(half, sums)), hn::PromoteTo(wide, hn::UpperHalf(half, sums)));
}

// Lanes may overflow, which Highway's own sum would do as signed numbers.
using UnsignedSums = hn::Repartition<std::uint64_t, Signed>;

HWY_INLINE std::uint64_t sum_of_lanes(hn::Vec<UnsignedSums> sums) {
  UnsignedSums const d;
  HWY_ALIGN std::uint64_t lanes[HWY_MAX_BYTES / sizeof(std::uint64_t)];
  hn::Store(sums, d, lanes);
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) sum += lanes[i];
  return sum;
}

template <typename Word>
HWY_ATTR std::uint64_t weigh_line(std::byte const* bytes, FactorRun const& factors, std::size_t count,
                                  std::uint64_t sum_of_factors) {
  Signed const d;
  Sums const d32;
  WideSums const d64;
  auto const lanes = hn::Lanes(d);
  auto const whole = count / lanes * lanes;
  auto const* const words = reinterpret_cast<Word const*>(bytes);
  auto total = hn::Zero(d64);
  for (std::size_t begin = 0; begin < whole;) {
    auto const end = std::min(whole, begin + kPairs * lanes);
    auto low = hn::Zero(d32), middle = hn::Zero(d32), high = hn::Zero(d32);
    auto low_odd = hn::Zero(d32), middle_odd = hn::Zero(d32), high_odd = hn::Zero(d32);
    for (; begin < end; begin += lanes) {
      hwy::Prefetch(bytes + begin * sizeof(Word) + kAhead);
      auto const w = load_words(d, words + begin);
      low = hn::ReorderWidenMulAccumulate(d32, hn::LoadU(d, factors.pieces[0] + begin), w, low, low_odd);
      middle = hn::ReorderWidenMulAccumulate(d32, hn::LoadU(d, factors.pieces[1] + begin), w, middle, middle_odd);
      high = hn::ReorderWidenMulAccumulate(d32, hn::LoadU(d, factors.pieces[2] + begin), w, high, high_odd);
    }
    auto const upper =
        hn::Add(hn::ShiftLeft<11>(widened(hn::Add(high, high_odd))), widened(hn::Add(middle, middle_odd)));
    total = hn::Add(total, hn::Add(hn::ShiftLeft<11>(upper), widened(hn::Add(low, low_odd))));
  }
  auto const sum = sum_of_lanes(hn::BitCast(UnsignedSums(), total));
  auto const rest =
      weigh_one_by_one<Word>(bytes + whole * sizeof(Word), sizeof(Word), factors.whole + whole, count - whole);
  if constexpr (sizeof(Word) == 1) return sum + rest;
  return sum + rest + kBias * (sum_of_factors - sum_of(factors.whole + whole, count - whole));
}

template <>
HWY_ATTR std::uint64_t weigh_line<std::uint32_t>(std::byte const* bytes, FactorRun const& factors, std::size_t count,
                                                 std::uint64_t) {
  hn::ScalableTag<std::uint32_t> const d;
  hn::Repartition<std::uint64_t, decltype(d)> const d64;
  auto const lanes = hn::Lanes(d);
  auto const whole = count / lanes * lanes;
  auto const* const words = reinterpret_cast<std::uint32_t const*>(bytes);
  auto even = hn::Zero(d64), odd = hn::Zero(d64);
  for (std::size_t i = 0; i < whole; i += lanes) {
    hwy::Prefetch(bytes + i * sizeof(std::uint32_t) + kAhead);
    auto const w = hn::LoadU(d, words + i);
    auto const f = hn::LoadU(d, factors.whole + i);
    auto const upper = [&](auto v) HWY_ATTR { return hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(d64, v))); };
    even = hn::Add(even, hn::MulEven(w, f));
    odd = hn::Add(odd, hn::MulEven(upper(w), upper(f)));
  }
  auto const sum = sum_of_lanes(hn::Add(even, odd));
  return sum + weigh_one_by_one<std::uint32_t>(bytes + 4 * whole, 4, factors.whole + whole, count - whole);
}

#endif

template <typename Word>
HWY_ATTR void weigh_each(WordLines const& words, FactorRun const& factors, std::uint64_t* sums) {
  auto const of_factors = sum_of(factors.whole, words.count);
  for (std::size_t i = 0; i < words.lines; ++i) {
    auto const* const line = words.data + i * words.line_stride;
    auto const sum = words.word_stride == sizeof(Word)
                         ? weigh_line<Word>(line, factors, words.count, of_factors)
                         : weigh_one_by_one<Word>(line, words.word_stride, factors.whole, words.count);
    sums[i] = sum + of_factors;
  }
}

HWY_ATTR void weigh_words(WordLines const& words, FactorRun const& factors, std::uint64_t* sums) {
  switch (words.word_bytes) {
    case 1:
      return weigh_each<std::uint8_t>(words, factors, sums);
    case 2:
      return weigh_each<std::uint16_t>(words, factors, sums);
    default:
      return weigh_each<std::uint32_t>(words, factors, sums);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace rankslice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace rankslice {

namespace {

HWY_EXPORT(fill_factors);
HWY_EXPORT(weigh_words);

}  // namespace

void FactorTable::fill(DigestAxis axis, std::uint64_t first, std::uint64_t count) {
  whole_.resize(count);
  for (auto& piece : pieces_) piece.resize(count);
  HWY_DYNAMIC_DISPATCH(fill_factors)
  (axis, first, count, whole_.data(), {pieces_[0].data(), pieces_[1].data(), pieces_[2].data()});
}

FactorRun FactorTable::from(std::uint64_t begin) const {
  return {.whole = whole_.data() + begin,
          .pieces = {pieces_[0].data() + begin, pieces_[1].data() + begin, pieces_[2].data() + begin}};
}

void weigh_lines(WordLines const& words, FactorRun const& factors, std::uint64_t* sums) {
  HWY_DYNAMIC_DISPATCH(weigh_words)(words, factors, sums);
}

}  // namespace rankslice

#endif
