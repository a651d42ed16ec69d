#include "transform/dequantise.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

using Bytes = std::vector<std::byte>;

/// Of an F8_E4M3 code that is a number, by its definition.
float value_of(std::byte code) {
  auto const bits = std::to_integer<int>(code);
  auto const exponent = bits >> 3 & 0xF;
  auto const fraction = static_cast<float>(bits & 7) / 8;
  auto const magnitude = exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1 + fraction, exponent - 7);
  return bits >= 0x80 ? -magnitude : magnitude;
}

template <typename Element>
Bytes bytes_of(std::vector<Element> const& elements) {
  Bytes bytes(elements.size() * sizeof(Element));
  std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

/// A matrix of codes with scales that are all different.
struct Quantised {
  std::uint64_t rows, columns, block_columns = (columns + 127) / 128;
  Bytes codes = Bytes(rows * columns);
  std::vector<float> scales = std::vector<float>((rows + 127) / 128 * block_columns);

  Quantised(std::uint64_t matrix_rows, std::uint64_t matrix_columns) : rows(matrix_rows), columns(matrix_columns) {
    std::mt19937 random(7);
    for (auto& code : codes) {
      code = static_cast<std::byte>(random());
      if ((code & std::byte{0x7F}) == std::byte{0x7F}) code = std::byte{};  // no NaN
    }
    for (auto& scale : scales) scale = static_cast<float>(random() % 1000 + 1) * 0x1.2345p-20F;
  }
  [[nodiscard]] float value(std::uint64_t row, std::uint64_t column) const {
    return value_of(codes[row * columns + column]) * scales[row / 128 * block_columns + column / 128];
  }
};

struct Box {
  std::uint64_t row, column, rows, columns;
};

Bytes dequantised(Quantised const& matrix, Box const& box, DType to) {
  auto const scales = bytes_of(matrix.scales);
  Bytes out(box.rows * box.columns * element_bytes(to));
  dequantise({.data = matrix.codes.data() + box.row * matrix.columns + box.column,
              .rows = box.rows,
              .columns = box.columns,
              .stride = matrix.columns},
             box.row, box.column, {.data = scales.data(), .dtype = DType::F32, .columns = matrix.block_columns},
             out.data(), to);
  return out;
}

TEST(Dequantise, Rule58_EachCodeIsMultipliedByTheScaleOfItsBlock) {
  for (auto const& [rows, columns] : {std::pair{1, 1}, {127, 129}, {128, 128}, {129, 127}, {300, 200}, {2, 4200}}) {
    Quantised const matrix(static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns));
    std::vector<float> expected;
    for (std::uint64_t row = 0; row < matrix.rows; ++row) {
      for (std::uint64_t column = 0; column < matrix.columns; ++column) expected.push_back(matrix.value(row, column));
    }
    auto const found = dequantised(matrix, {0, 0, matrix.rows, matrix.columns}, DType::F32);
    EXPECT_EQ(found, bytes_of(expected)) << rows << " x " << columns;
  }
}

TEST(Dequantise, Rule59_BoxesThatBeginAndEndWithinBlocksGiveTheBytesOfTheWhole) {
  Quantised const matrix(300, 2300);
  for (auto const to : {DType::BF16, DType::F16, DType::F32}) {
    auto const unit = element_bytes(to);
    auto const whole = dequantised(matrix, {0, 0, matrix.rows, matrix.columns}, to);
    for (auto const& box : {Box{0, 0, 1, 1},
                            {127, 127, 2, 2},
                            {100, 250, 150, 100},
                            {128, 128, 128, 128},
                            {299, 0, 1, 2300},
                            {0, 2299, 300, 1},
                            {90, 2040, 60, 20},
                            {5, 130, 0, 9},
                            {5, 130, 9, 0}}) {
      Bytes expected;
      for (auto row = box.row; row < box.row + box.rows; ++row) {
        auto const first = whole.begin() + static_cast<std::ptrdiff_t>((row * matrix.columns + box.column) * unit);
        expected.insert(expected.end(), first, first + static_cast<std::ptrdiff_t>(box.columns * unit));
      }
      EXPECT_EQ(dequantised(matrix, box, to), expected) << name(to) << " from " << box.row << ", " << box.column;
    }
  }
}

TEST(Dequantise, TakesScalesOfEachTypeAndWritesEachAtAnyAddress) {
  // Codes 1, -1, 448, the smallest subnormal; the scale 1.5.
  Bytes const codes{std::byte{0x38}, std::byte{0xB8}, std::byte{0x7E}, std::byte{0x01}};
  std::vector<std::pair<DType, Bytes>> const scales{{DType::BF16, bytes_of<std::uint16_t>({0x3FC0})},
                                                    {DType::F16, bytes_of<std::uint16_t>({0x3E00})},
                                                    {DType::F32, bytes_of<std::uint32_t>({0x3FC00000})}};
  std::vector<std::pair<DType, Bytes>> const expected{
      {DType::BF16, bytes_of<std::uint16_t>({0x3FC0, 0xBFC0, 0x4428, 0x3B40})},
      {DType::F16, bytes_of<std::uint16_t>({0x3E00, 0xBE00, 0x6140, 0x1A00})},
      {DType::F32, bytes_of<std::uint32_t>({0x3FC00000, 0xBFC00000, 0x44280000, 0x3B400000})}};
  for (auto const& [scale_dtype, scale] : scales) {
    Bytes shifted{std::byte{}};
    shifted.insert(shifted.end(), scale.begin(), scale.end());
    for (auto const& [to, values] : expected) {
      Bytes out(1 + values.size());
      dequantise({.data = codes.data(), .rows = 1, .columns = 4, .stride = 4}, 0, 0,
                 {.data = shifted.data() + 1, .dtype = scale_dtype, .columns = 1}, out.data() + 1, to);
      EXPECT_EQ(Bytes(out.begin() + 1, out.end()), values) << name(scale_dtype) << " scales to " << name(to);
    }
  }
}

TEST(Dequantise, Rule58_TheProductIsRoundedToF32First) {
  // 1.25 · 0x1.9B3334p-1 = 1 + 2^-8 + 2^-25: in F32 1 + 2^-8, which lies half-way between two BF16 and goes to even.
  Bytes const code{std::byte{0x3A}};
  auto const scale = bytes_of<std::uint32_t>({0x3F4D999A});
  Bytes out(2);
  dequantise({.data = code.data(), .rows = 1, .columns = 1, .stride = 1}, 0, 0,
             {.data = scale.data(), .dtype = DType::F32, .columns = 1}, out.data(), DType::BF16);
  EXPECT_EQ(out, bytes_of<std::uint16_t>({0x3F80}));
}

TEST(Dequantise, KeepsNanAndGoesToInfinityBeyondTheLargestNumber) {
  Bytes const codes{std::byte{0x7F}, std::byte{0xFF}, std::byte{0x7E}, std::byte{0xFE}};
  auto const scales = bytes_of<float>({0x1p120F});
  std::vector<float> out(4);
  dequantise({.data = codes.data(), .rows = 1, .columns = 4, .stride = 4}, 0, 0,
             {.data = scales.data(), .dtype = DType::F32, .columns = 1}, std::as_writable_bytes(std::span(out)).data(),
             DType::F32);
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_TRUE(std::isnan(out[1]));
  EXPECT_EQ(out[2], INFINITY);
  EXPECT_EQ(out[3], -INFINITY);
}

TEST(Dequantise, RefusesOtherTypesByName) {
  Bytes const byte(8);
  Bytes out(8);
  MatrixView const one{.data = byte.data(), .rows = 1, .columns = 1, .stride = 1};
  auto const message = [&](DType scales, DType to) {
    try {
      dequantise(one, 0, 0, {.data = byte.data(), .dtype = scales, .columns = 1}, out.data(), to);
    } catch (PlanError const& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message(DType::F8_E8M0, DType::BF16), "the scales of F8_E4M3 weights cannot be F8_E8M0");
  EXPECT_EQ(message(DType::F32, DType::F64), "F8_E4M3 weights cannot be dequantised to F64");
  EXPECT_EQ(message(DType::F32, DType::F8_E4M3), "F8_E4M3 weights cannot be dequantised to F8_E4M3");
}

}  // namespace

}  // namespace rankslice
