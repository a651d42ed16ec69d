#include "transform/dequantise.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "rankslice/error.hpp"

#include "core/block_scales.hpp"
#include "transform/float_formats.hpp"

namespace rankslice {

namespace {

constexpr std::size_t kCodes = 256;

template <DType dtype>
using Values = std::array<typename Float<dtype>::Bits, kCodes>;

constexpr std::array<float, kCodes> kValueOfCode = [] {
  std::array<float, kCodes> values{};
  for (std::size_t code = 0; code < kCodes; ++code) {
    values[code] = std::bit_cast<float>(Float<DType::F8_E4M3>::widen(static_cast<std::uint8_t>(code)));
  }
  return values;
}();

template <DType dtype>
float read_scale(std::byte const* scales, std::uint64_t index) {
  typename Float<dtype>::Bits scale;
  std::memcpy(&scale, scales + index * sizeof(scale), sizeof(scale));
  return std::bit_cast<float>(Float<dtype>::widen(scale));
}

using ReadScale = float (*)(std::byte const* scales, std::uint64_t index);

ReadScale scale_reader(DType dtype) {
  switch (dtype) {
    case DType::BF16:
      return read_scale<DType::BF16>;
    case DType::F16:
      return read_scale<DType::F16>;
    case DType::F32:
      return read_scale<DType::F32>;
    default:
      throw PlanError(fmt::format("the scales of F8_E4M3 weights cannot be {}", name(dtype)));
  }
}

template <DType to>
Values<to> scaled_values(float scale) {
  Values<to> values;
  for (std::size_t code = 0; code < kCodes; ++code) {
    values[code] = Float<to>::narrow(std::bit_cast<F32Bits>(kValueOfCode[code] * scale));
  }
  return values;
}

template <DType to>
void look_up(Values<to> const& values, std::byte const* codes, std::uint64_t count, std::byte* out) {
  for (std::uint64_t i = 0; i < count; ++i) {
    auto const& value = values[std::to_integer<std::size_t>(codes[i])];
    std::memcpy(out + i * sizeof(value), &value, sizeof(value));
  }
}

/// How many of the positions from `first` to `end` are in the same block as `first`, where blocks have `size`.
std::uint64_t rest_of_block(std::uint64_t first, std::uint64_t end, std::uint64_t size) {
  return std::min(end, first / size * size + size) - first;
}

/// Blocks beside one another whose tables are kept at a time: few enough for the nearest cache, and enough to make the
/// runs of a row so long that memory delivers and takes them as a stream.
constexpr std::uint64_t kKeptBlocks = 16;

/// Part of a matrix, in one row of blocks and at most `kKeptBlocks` columns of them.
struct Group {
  MatrixView codes;
  std::uint64_t first_column;  // in the matrix
  std::byte const* scales;     // of its row of blocks
  std::byte* out;
  std::uint64_t out_stride;  // in elements
};

template <DType to>
void dequantise_group(Group const& group, ReadScale read) {
  auto const& [codes, first_column, scales, out, out_stride] = group;
  auto const first_block = first_column / kScaleBlock;
  auto const end = first_column + codes.columns;
  std::array<Values<to>, kKeptBlocks> values;
  for (auto block = first_block; block * kScaleBlock < end; ++block) {
    values[block - first_block] = scaled_values<to>(read(scales, block));
  }
  for (std::uint64_t row = 0; row < codes.rows; ++row) {
    for (std::uint64_t column = first_column, count = 0; column < end; column += count) {
      count = rest_of_block(column, end, kScaleBlock);
      auto const in_box = column - first_column;
      look_up<to>(values[column / kScaleBlock - first_block], codes.data + row * codes.stride + in_box, count,
                  out + (row * out_stride + in_box) * sizeof(typename Float<to>::Bits));
    }
  }
}

/// A block has many more elements than there are codes: each product is computed once.
template <DType to>
void dequantise_to(MatrixView const& codes, std::uint64_t first_row, std::uint64_t first_column,
                   BlockScales const& scales, std::byte* out) {
  auto const read = scale_reader(scales.dtype);
  auto const row_of_scales = scales.columns * element_bytes(scales.dtype);
  for (std::uint64_t row = 0, rows = 0; row < codes.rows; row += rows) {
    rows = rest_of_block(first_row + row, first_row + codes.rows, kScaleBlock);
    for (std::uint64_t column = 0, columns = 0; column < codes.columns; column += columns) {
      columns = rest_of_block(first_column + column, first_column + codes.columns, kKeptBlocks * kScaleBlock);
      dequantise_group<to>({.codes = {.data = codes.data + row * codes.stride + column,
                                      .rows = rows,
                                      .columns = columns,
                                      .stride = codes.stride},
                            .first_column = first_column + column,
                            .scales = scales.data + (first_row + row) / kScaleBlock * row_of_scales,
                            .out = out + (row * codes.columns + column) * element_bytes(to),
                            .out_stride = codes.columns},
                           read);
    }
  }
}

}  // namespace

void dequantise(MatrixView const& codes, std::uint64_t first_row, std::uint64_t first_column, BlockScales const& scales,
                std::byte* out, DType to) {
  switch (to) {
    case DType::BF16:
      return dequantise_to<DType::BF16>(codes, first_row, first_column, scales, out);
    case DType::F16:
      return dequantise_to<DType::F16>(codes, first_row, first_column, scales, out);
    case DType::F32:
      return dequantise_to<DType::F32>(codes, first_row, first_column, scales, out);
    default:
      throw PlanError(fmt::format("F8_E4M3 weights cannot be dequantised to {}", name(to)));
  }
}

}  // namespace rankslice
