#include "transform/convert.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

using Patterns = std::vector<std::uint32_t>;  // the bits of elements, whatever their width

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A float type by its definition: sign, exponent with a bias, mantissa.
struct FloatFormat {
  DType dtype;
  std::uint32_t width, mantissa_bits;
  int bias;
  std::uint32_t largest;  // the magnitude of the largest number
  bool saturates;         // what is larger becomes it; there is no infinity

  [[nodiscard]] std::uint32_t sign() const { return 1U << (width - 1); }
  [[nodiscard]] std::uint32_t magnitude(std::uint32_t bits) const { return bits & (sign() - 1); }
  [[nodiscard]] std::uint32_t payload(std::uint32_t bits) const { return bits & ((1U << mantissa_bits) - 1); }
  [[nodiscard]] bool is_negative(std::uint32_t bits) const { return (bits & sign()) != 0; }
  [[nodiscard]] bool is_infinity(std::uint32_t bits) const { return !saturates && magnitude(bits) == largest + 1; }
  [[nodiscard]] bool is_nan(std::uint32_t bits) const { return magnitude(bits) > largest && !is_infinity(bits); }

  /// Of a magnitude; beyond the largest number, what its bits would be if there were no infinity: rounding goes by
  /// that.
  [[nodiscard]] double number(std::uint32_t bits) const {
    auto const exponent = static_cast<int>(bits >> mantissa_bits);
    auto const fraction = std::ldexp(payload(bits), -static_cast<int>(mantissa_bits));
    return exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  }
  /// Of anything but NaN.
  [[nodiscard]] double value(std::uint32_t bits) const {
    auto const value = is_infinity(bits) ? kInfinity : number(magnitude(bits));
    return is_negative(bits) ? -value : value;
  }
  /// The nearest of all values, found by bisection; of two, the even one.
  [[nodiscard]] std::uint32_t nearest(double value) const {
    auto const sign_bit = std::signbit(value) ? sign() : 0;
    auto const size = std::fabs(value);
    auto low = 0U;
    auto high = saturates ? largest : largest + 1;
    if (size >= number(high)) return sign_bit | high;
    while (high - low > 1) {
      auto const middle = (low + high) / 2;
      (number(middle) <= size ? low : high) = middle;
    }
    auto const below = size - number(low);
    auto const above = number(high) - size;
    if (below != above) return sign_bit | (below < above ? low : high);
    return sign_bit | (low % 2 == 0 ? low : high);
  }
  [[nodiscard]] Patterns all() const {
    Patterns all(std::size_t{1} << width);
    std::iota(all.begin(), all.end(), 0U);
    return all;
  }
};

constexpr FloatFormat kF32{DType::F32, 32, 23, 127, 0x7F7FFFFF, false};
constexpr FloatFormat kBf16{DType::BF16, 16, 7, 127, 0x7F7F, false};
constexpr FloatFormat kF16{DType::F16, 16, 10, 15, 0x7BFF, false};
constexpr FloatFormat kF8{DType::F8_E4M3, 8, 3, 7, 0x7E, true};

Patterns converted(Patterns const& in, FloatFormat const& from, FloatFormat const& to) {
  std::vector<std::byte> source(in.size() * from.width / 8), result(in.size() * to.width / 8);
  for (std::size_t i = 0; i < in.size(); ++i) {
    std::memcpy(source.data() + i * from.width / 8, &in[i], from.width / 8);
  }
  convert(source, from.dtype, result, to.dtype);
  Patterns out(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) std::memcpy(&out[i], result.data() + i * to.width / 8, to.width / 8);
  return out;
}

std::uint32_t bits_of(double value) { return std::bit_cast<std::uint32_t>(static_cast<float>(value)); }

/// What becomes of a NaN: one of the same sign, with the leading bits of its payload where they say anything.
void expect_same_nan(std::uint32_t before, FloatFormat const& from, std::uint32_t after, FloatFormat const& to) {
  ASSERT_TRUE(to.is_nan(after)) << std::hex << before;
  ASSERT_EQ(to.is_negative(after), from.is_negative(before)) << std::hex << before;
  if (to.saturates) return;  // it has only one
  auto const wide = std::uint64_t{from.payload(before)} << (23 - from.mantissa_bits);
  auto const kept = wide >> (23 - to.mantissa_bits);
  if (kept != 0) {
    ASSERT_EQ(to.payload(after), kept) << std::hex << before;
  }
}

/// Convert, and compare each result with the nearest value by definition.
void expect_nearest(Patterns const& values, FloatFormat const& from, FloatFormat const& to) {
  auto const results = converted(values, from, to);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (from.is_nan(values[i])) {
      ASSERT_NO_FATAL_FAILURE(expect_same_nan(values[i], from, results[i], to));
    } else {
      ASSERT_EQ(results[i], to.nearest(from.value(values[i]))) << std::hex << values[i];
    }
  }
}

struct FromTo {
  FloatFormat from, to;
};

std::string name_of(testing::TestParamInfo<FromTo> const& tested) {
  return fmt::format("{}_to_{}", name(tested.param.from.dtype), name(tested.param.to.dtype));
}

class EveryPattern : public testing::TestWithParam<FromTo> {};

TEST_P(EveryPattern, BecomesTheNearestValue) {  // rule 51
  expect_nearest(GetParam().from.all(), GetParam().from, GetParam().to);
}

INSTANTIATE_TEST_SUITE_P(Pairs, EveryPattern,
                         testing::Values(FromTo{kBf16, kF16}, FromTo{kBf16, kF32}, FromTo{kBf16, kF8},
                                         FromTo{kF16, kBf16}, FromTo{kF16, kF32}, FromTo{kF16, kF8}, FromTo{kF8, kBf16},
                                         FromTo{kF8, kF16}, FromTo{kF8, kF32}),
                         name_of);

class Widening : public testing::TestWithParam<FromTo> {};

TEST_P(Widening, ComesBackToTheSameBitsSignallingNanIncluded) {
  auto const& [from, to] = GetParam();
  EXPECT_EQ(converted(converted(from.all(), from, to), to, from), from.all());
}

INSTANTIATE_TEST_SUITE_P(Pairs, Widening,
                         testing::Values(FromTo{kBf16, kF32}, FromTo{kF16, kF32}, FromTo{kF8, kBf16}, FromTo{kF8, kF16},
                                         FromTo{kF8, kF32}),
                         name_of);

class FromF32 : public testing::TestWithParam<FloatFormat> {};

TEST_P(FromF32, RoundsTiesToEvenAndTheirNeighboursToTheNearest) {
  auto const& format = GetParam();
  Patterns values;
  for (std::uint32_t low = 0; low <= format.largest; ++low) {
    auto const tie = bits_of((format.number(low) + format.number(low + 1)) / 2);
    for (auto const magnitude : {tie, tie + 1, tie - 1}) {
      values.push_back(magnitude);
      values.push_back(magnitude | kF32.sign());
    }
  }
  expect_nearest(values, kF32, format);
}

TEST_P(FromF32, RoundsNumbersOfEveryExponentToTheNearest) {
  std::mt19937 random(3);
  Patterns values;
  for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (int i = 0; i < 100; ++i) {
      values.push_back((static_cast<std::uint32_t>(random()) & 0x807FFFFFU) | exponent << 23);
    }
  }
  expect_nearest(values, kF32, GetParam());
}

TEST_P(FromF32, KeepsNanWhateverItsPayload) {
  Patterns nans{0x7F800001U, 0xFF800001U, 0x7FFFFFFFU, 0x7FC00000U, 0xFFC00000U};
  for (int bit = 0; bit < 23; ++bit) nans.push_back(0x7F800000U | 1U << bit);
  expect_nearest(nans, kF32, GetParam());
}

TEST_P(FromF32, TakesAndGivesElementsAtAnyAddress) {
  auto const dtype = GetParam().dtype;
  std::vector<std::byte> in(1 + 4 * element_bytes(dtype), std::byte{0x3C}), out(17), back(in.size());
  convert(std::span(in).subspan(1), dtype, std::span(out).subspan(1), DType::F32);
  convert(std::span<std::byte const>(out).subspan(1), DType::F32, std::span(back).subspan(1), dtype);
  EXPECT_TRUE(std::equal(in.begin() + 1, in.end(), back.begin() + 1));
  EXPECT_EQ(out[0], std::byte{0});
  EXPECT_EQ(back[0], std::byte{0});
}

INSTANTIATE_TEST_SUITE_P(Formats, FromF32, testing::Values(kBf16, kF16, kF8),
                         [](auto const& tested) { return std::string(name(tested.param.dtype)); });

struct Literal {
  double from;
  std::uint32_t to;
};

void expect_literals(std::vector<Literal> const& literals, FloatFormat const& to) {
  Patterns values, expected;
  for (auto const& literal : literals) {
    values.push_back(bits_of(literal.from));
    expected.push_back(literal.to);
  }
  EXPECT_EQ(converted(values, kF32, to), expected);
}

TEST(Convert, Rule51_F32SaturatesInE4m3AndOnlyNanStaysNan) {
  auto const nan = std::numeric_limits<double>::quiet_NaN();
  expect_literals({{448, 0x7E},
                   {-448, 0xFE},
                   {464, 0x7E},  // half-way to where the next number would be
                   {465, 0x7E},
                   {480, 0x7E},
                   {3e38, 0x7E},
                   {-3e38, 0xFE},
                   {kInfinity, 0x7E},
                   {-kInfinity, 0xFE},
                   {nan, 0x7F},
                   {std::copysign(nan, -1.0), 0xFF}},
                  kF8);
  EXPECT_EQ(converted({0x7F80, 0xFF80, 0x7FC0, 0x43E8}, kBf16, kF8), (Patterns{0x7E, 0xFE, 0x7F, 0x7E}));
  EXPECT_EQ(converted({0x7C00, 0xFC00, 0x7E00, 0x7BFF}, kF16, kF8), (Patterns{0x7E, 0xFE, 0x7F, 0x7E}));
}

TEST(Convert, Rule51_E4m3RoundsToEvenAmongItsSubnormalsToo) {
  expect_literals({{0, 0x00},
                   {-0.0, 0x80},
                   {0x1p-9, 0x01},
                   {0x1p-10, 0x00},
                   {-0x1p-10, 0x80},
                   {0x1.1p-10, 0x01},
                   {0x1.8p-9, 0x02},
                   {0x1.4p-8, 0x02},
                   {0x1.Ep-7, 0x08},  // becomes the smallest normal number
                   {0x1p-6, 0x08},
                   {1, 0x38},
                   {1.0625, 0x38},
                   {1.1875, 0x3A},
                   {-1.1875, 0xBA}},
                  kF8);
}

TEST(Convert, TurnsWhatIsTooLargeForF16AndBf16IntoInfinity) {
  expect_literals({{65504, 0x7BFF}, {65519, 0x7BFF}, {65520, 0x7C00}, {-65520, 0xFC00}, {kInfinity, 0x7C00}}, kF16);
  expect_literals({{0x1.FEp127, 0x7F7F}, {0x1.FFp127, 0x7F80}, {-0x1.FFp127, 0xFF80}, {-kInfinity, 0xFF80}}, kBf16);
  EXPECT_EQ(converted({0x4780, 0xC780, 0x477F}, kBf16, kF16), (Patterns{0x7C00, 0xFC00, 0x7BF8}));
}

TEST(Convert, KnowsAllPairsOfFourTypesAndRefusesOthersByName) {
  std::vector const known{DType::BF16, DType::F16, DType::F32, DType::F8_E4M3};
  for (auto from = DType::F4; from <= DType::U64; from = static_cast<DType>(static_cast<int>(from) + 1)) {
    for (auto to = DType::F4; to <= DType::U64; to = static_cast<DType>(static_cast<int>(to) + 1)) {
      auto const both = std::ranges::count(known, from) + std::ranges::count(known, to) == 2;
      try {
        convert({}, from, {}, to);
        EXPECT_TRUE(both && from != to) << name(from) << " to " << name(to);
      } catch (PlanError const& error) {
        EXPECT_FALSE(both && from != to);
        EXPECT_EQ(error.what(), fmt::format("{} cannot be converted to {}", name(from), name(to)));
      }
    }
  }
}

}  // namespace

}  // namespace rankslice
