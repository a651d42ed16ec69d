#include "transform/convert.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

using Narrow = std::vector<std::uint16_t>;
using Wide = std::vector<std::uint32_t>;

/// A 16-bit format by its definition: sign, exponent with a bias, mantissa.
struct NarrowFormat {
  DType dtype;
  int mantissa_bits, bias, exponents;

  [[nodiscard]] int exponent(std::uint16_t value) const { return (value & 0x7FFF) >> mantissa_bits; }
  [[nodiscard]] int mantissa(std::uint16_t value) const { return value & ((1 << mantissa_bits) - 1); }
  [[nodiscard]] bool is_nan(std::uint16_t value) const {
    return exponent(value) == exponents - 1 && mantissa(value) != 0;
  }
  [[nodiscard]] std::uint16_t infinity() const { return static_cast<std::uint16_t>((exponents - 1) << mantissa_bits); }
  /// Of a magnitude; where infinity stands, the number that its bits would be without it: rounding goes by that.
  [[nodiscard]] double value(std::uint16_t magnitude) const {
    auto const fraction = std::ldexp(mantissa(magnitude), -mantissa_bits);
    if (exponent(magnitude) == 0) return std::ldexp(fraction, 1 - bias);
    return std::ldexp(1 + fraction, exponent(magnitude) - bias);
  }
  /// The nearest of all values, found by bisection; of two, the even one.
  [[nodiscard]] std::uint16_t nearest(double magnitude) const {
    std::uint16_t low = 0, high = infinity();
    if (magnitude >= value(high)) return high;
    while (high - low > 1) {
      auto const middle = static_cast<std::uint16_t>((low + high) / 2);
      (value(middle) <= magnitude ? low : high) = middle;
    }
    auto const below = magnitude - value(low);
    auto const above = value(high) - magnitude;
    if (below != above) return below < above ? low : high;
    return low % 2 == 0 ? low : high;
  }
};

constexpr NarrowFormat kBf16{DType::BF16, 7, 127, 256};
constexpr NarrowFormat kF16{DType::F16, 10, 15, 32};

void PrintTo(NarrowFormat const& format, std::ostream* out) { *out << name(format.dtype); }

Wide widen(Narrow const& in, DType from) {
  Wide out(in.size());
  convert(std::as_bytes(std::span(in)), from, std::as_writable_bytes(std::span(out)), DType::F32);
  return out;
}

Narrow narrow(Wide const& in, DType to) {
  Narrow out(in.size());
  convert(std::as_bytes(std::span(in)), DType::F32, std::as_writable_bytes(std::span(out)), to);
  return out;
}

Narrow all_patterns() {
  Narrow all(65536);
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  return all;
}

class Conversions : public testing::TestWithParam<NarrowFormat> {
 protected:
  /// Narrow the values and compare each with the nearest by definition.
  void check_rounding(Wide const& values) const {
    auto const& format = GetParam();
    auto const rounded = narrow(values, format.dtype);
    for (std::size_t i = 0; i < values.size(); ++i) {
      auto const value = std::bit_cast<float>(values[i]);
      ASSERT_FALSE(std::isnan(value));
      auto const sign = std::signbit(value) ? 0x8000 : 0;
      ASSERT_EQ(rounded[i], sign | format.nearest(std::fabs(double{value}))) << std::hex << values[i];
    }
  }
};

TEST_P(Conversions, WidenEveryNumberExactly) {
  auto const& format = GetParam();
  auto const all = all_patterns();
  auto const wide = widen(all, format.dtype);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (format.is_nan(all[i])) continue;
    auto const magnitude = static_cast<std::uint16_t>(all[i] & 0x7FFF);
    auto const infinite = magnitude == format.infinity();
    auto const expected = infinite ? std::numeric_limits<double>::infinity() : format.value(magnitude);
    auto const value = std::bit_cast<float>(wide[i]);
    ASSERT_EQ(std::fabs(double{value}), expected) << all[i];
    ASSERT_EQ(std::signbit(value), all[i] >= 0x8000) << all[i];
  }
}

TEST_P(Conversions, WidenNanKeepingSignAndPayload) {
  auto const& format = GetParam();
  auto const all = all_patterns();
  auto const wide = widen(all, format.dtype);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!format.is_nan(all[i])) continue;
    auto const sign = all[i] >= 0x8000 ? 0x80000000U : 0U;
    auto const payload = static_cast<std::uint32_t>(format.mantissa(all[i])) << (23 - format.mantissa_bits);
    ASSERT_EQ(wide[i], sign | 0x7F800000U | payload) << all[i];
  }
}

TEST_P(Conversions, BringEveryPatternBackSignallingNanIncluded) {
  EXPECT_EQ(narrow(widen(all_patterns(), GetParam().dtype), GetParam().dtype), all_patterns());
}

TEST_P(Conversions, RoundTiesToEvenAndTheirNeighboursToTheNearest) {
  auto const& format = GetParam();
  Wide values;
  for (std::uint16_t low = 0; low < format.infinity(); ++low) {
    auto const next = static_cast<std::uint16_t>(low + 1);
    auto const tie = std::bit_cast<std::uint32_t>(static_cast<float>((format.value(low) + format.value(next)) / 2));
    for (auto const magnitude : {tie, tie + 1, tie - 1}) {
      values.push_back(magnitude);
      values.push_back(magnitude | 0x80000000U);
    }
  }
  check_rounding(values);
}

TEST_P(Conversions, RoundRandomNumbersOfEveryExponentToTheNearest) {
  std::mt19937 random(3);
  Wide values;
  for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (int i = 0; i < 100; ++i) {
      values.push_back((static_cast<std::uint32_t>(random()) & 0x807FFFFFU) | exponent << 23);
    }
  }
  check_rounding(values);
}

TEST_P(Conversions, KeepZeroAndInfinityWithTheirSigns) {
  auto const infinity = GetParam().infinity();
  EXPECT_EQ(narrow({0, 0x80000000U, 0x7F800000U, 0xFF800000U}, GetParam().dtype),
            (Narrow{0, 0x8000, infinity, static_cast<std::uint16_t>(infinity | 0x8000)}));
}

TEST_P(Conversions, NarrowNanToNanWhateverItsPayload) {
  auto const& format = GetParam();
  Wide nans{0x7F800001U, 0xFF800001U, 0x7FFFFFFFU, 0x7FC00000U};
  for (int bit = 0; bit < 23; ++bit) nans.push_back(0x7F800000U | 1U << bit);
  auto const narrowed = narrow(nans, format.dtype);
  for (std::size_t i = 0; i < nans.size(); ++i) {
    EXPECT_TRUE(format.is_nan(narrowed[i])) << std::hex << nans[i];
    EXPECT_EQ(narrowed[i] >= 0x8000, nans[i] >= 0x80000000U);
    auto const kept = (nans[i] & 0x7FFFFF) >> (23 - format.mantissa_bits);
    if (kept != 0) {
      EXPECT_EQ(static_cast<std::uint32_t>(format.mantissa(narrowed[i])), kept);
    }
  }
}

TEST_P(Conversions, TakeAndGiveElementsAtAnyAddress) {
  auto const dtype = GetParam().dtype;
  std::vector<std::byte> in(9, std::byte{0x3C}), out(17), back(9);
  convert(std::span(in).subspan(1), dtype, std::span(out).subspan(1), DType::F32);
  convert(std::span<std::byte const>(out).subspan(1), DType::F32, std::span(back).subspan(1), dtype);
  EXPECT_TRUE(std::equal(in.begin() + 1, in.end(), back.begin() + 1));
  EXPECT_EQ(out[0], std::byte{0});
  EXPECT_EQ(back[0], std::byte{0});
}

INSTANTIATE_TEST_SUITE_P(Formats, Conversions, testing::Values(kBf16, kF16),
                         [](auto const& tested) { return std::string(name(tested.param.dtype)); });

TEST(Convert, KnowsFourPairsAndRefusesAllOthersByName) {
  std::set<std::pair<DType, DType>> const known{
      {DType::BF16, DType::F32}, {DType::F16, DType::F32}, {DType::F32, DType::BF16}, {DType::F32, DType::F16}};
  for (auto from = DType::F4; from <= DType::U64; from = static_cast<DType>(static_cast<int>(from) + 1)) {
    for (auto to = DType::F4; to <= DType::U64; to = static_cast<DType>(static_cast<int>(to) + 1)) {
      EXPECT_EQ(can_convert(from, to), known.contains({from, to})) << name(from) << " to " << name(to);
    }
  }
  try {
    convert({}, DType::BF16, {}, DType::F16);
    FAIL();
  } catch (PlanError const& error) {
    EXPECT_STREQ(error.what(), "BF16 cannot be converted to F16");
  }
}

}  // namespace

}  // namespace rankslice
