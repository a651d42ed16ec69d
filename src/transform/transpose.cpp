#include "transform/transpose.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace rankslice {

namespace {

constexpr std::size_t kVectorBytes = 16;
constexpr std::size_t kReadBytes = 64;    // of each source row by a tile: one cache line
constexpr std::size_t kWriteBytes = 128;  // of each destination row: two lines, which are fetched in pairs

/// The vectors of one register each that the elements of one width fill.
template <typename Element>
struct Lanes {
  static constexpr std::size_t kCount = kVectorBytes / sizeof(Element);
  typedef Element Vector __attribute__((vector_size(kVectorBytes)));

  template <std::size_t... Lane>
  static Vector interleave_low(Vector a, Vector b, std::index_sequence<Lane...>) {
    return __builtin_shufflevector(a, b, (Lane / 2 + Lane % 2 * kCount)...);
  }
  template <std::size_t... Lane>
  static Vector interleave_high(Vector a, Vector b, std::index_sequence<Lane...>) {
    return __builtin_shufflevector(a, b, (Lane / 2 + Lane % 2 * kCount + kCount / 2)...);
  }
};

/// Transpose a square of as many elements as a vector holds; strides in bytes.
///
/// Interleaving the first half of the rows with the second half turns every element's address (row bits, column bits)
/// round by one bit. As many rounds as there are column bits exchange row and column.
template <typename Element>
void transpose_square(std::byte const* in, std::size_t in_stride, std::byte* out, std::size_t out_stride) {
  using L = Lanes<Element>;
  constexpr auto kLanes = std::make_index_sequence<L::kCount>();
  typename L::Vector rows[L::kCount];
  typename L::Vector turned[L::kCount];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < L::kCount; ++i) std::memcpy(&rows[i], in + i * in_stride, kVectorBytes);
#pragma GCC unroll 4
  for (std::size_t bit = 1; bit < L::kCount; bit *= 2) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < L::kCount / 2; ++i) {
      turned[2 * i] = L::interleave_low(rows[i], rows[i + L::kCount / 2], kLanes);
      turned[2 * i + 1] = L::interleave_high(rows[i], rows[i + L::kCount / 2], kLanes);
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < L::kCount; ++i) rows[i] = turned[i];
  }
#pragma GCC unroll 16
  for (std::size_t i = 0; i < L::kCount; ++i) std::memcpy(out + i * out_stride, &rows[i], kVectorBytes);
}

template <typename Element>
void transpose_elements(std::byte const* in, std::size_t in_stride, std::size_t rows, std::size_t columns,
                        std::byte* out, std::size_t out_stride) {
  for (std::size_t c = 0; c < columns; ++c) {
    for (std::size_t r = 0; r < rows; ++r) {
      std::memcpy(out + c * out_stride + r * sizeof(Element), in + r * in_stride + c * sizeof(Element),
                  sizeof(Element));
    }
  }
}

/// Squares, and single elements where none fits any more.
template <typename Element>
void transpose_tile(std::byte const* in, std::size_t in_stride, std::size_t rows, std::size_t columns, std::byte* out,
                    std::size_t out_stride) {
  constexpr auto kEdge = Lanes<Element>::kCount;
  auto const whole_rows = rows / kEdge * kEdge;
  auto const whole_columns = columns / kEdge * kEdge;
  for (std::size_t r = 0; r < whole_rows; r += kEdge) {
    for (std::size_t c = 0; c < whole_columns; c += kEdge) {
      transpose_square<Element>(in + r * in_stride + c * sizeof(Element), in_stride,
                                out + c * out_stride + r * sizeof(Element), out_stride);
    }
  }
  transpose_elements<Element>(in + whole_columns * sizeof(Element), in_stride, whole_rows, columns - whole_columns,
                              out + whole_columns * out_stride, out_stride);
  transpose_elements<Element>(in + whole_rows * in_stride, in_stride, rows - whole_rows, columns,
                              out + whole_rows * sizeof(Element), out_stride);
}

/// Tile by tile. A tile is put together in a buffer of its own: the rows of large matrices lie a power of two apart,
/// so that a tile's lines would push each other out of the cache before they are full.
template <typename Element>
void transpose_matrix(MatrixView const& in, std::byte* out, std::size_t out_stride) {
  constexpr auto kTileColumns = kReadBytes / sizeof(Element);
  constexpr auto kTileRows = kWriteBytes / sizeof(Element);
  alignas(64) std::byte tile[kTileColumns * kWriteBytes];
  auto const in_stride = in.stride * sizeof(Element);
  for (std::size_t r = 0; r < in.rows; r += kTileRows) {
    auto const rows = std::min(kTileRows, in.rows - r);
    for (std::size_t c = 0; c < in.columns; c += kTileColumns) {
      auto const columns = std::min(kTileColumns, in.columns - c);
      transpose_tile<Element>(in.data + r * in_stride + c * sizeof(Element), in_stride, rows, columns, tile,
                              kWriteBytes);
      auto* const to = out + c * out_stride + r * sizeof(Element);
      for (std::size_t i = 0; i < columns; ++i) {
        std::memcpy(to + i * out_stride, tile + i * kWriteBytes, rows * sizeof(Element));
      }
    }
  }
}

}  // namespace

void transpose(MatrixView const& in, std::uint64_t element_bytes, std::byte* out, std::uint64_t out_stride) {
  auto const stride_bytes = out_stride * element_bytes;
  switch (element_bytes) {
    case 1:
      return transpose_matrix<std::uint8_t>(in, out, stride_bytes);
    case 2:
      return transpose_matrix<std::uint16_t>(in, out, stride_bytes);
    case 4:
      return transpose_matrix<std::uint32_t>(in, out, stride_bytes);
    default:
      return transpose_matrix<std::uint64_t>(in, out, stride_bytes);
  }
}

}  // namespace rankslice
