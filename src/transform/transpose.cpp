#include "transform/transpose.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace rankslice {

namespace {

constexpr std::size_t kVectorBytes = 16;
constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kReadBytes = kLineBytes;       // of each source row by a tile
constexpr std::size_t kWriteBytes = 2 * kLineBytes;  // of each destination row

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

#ifdef __SSE2__

/// Past the cache: the lines of a strip's result lie far apart, and fetching each before it is overwritten costs seven
/// times as much as all the rest.
void stream_row(std::byte* out, std::byte const* row) {
  auto* const to = reinterpret_cast<__m128i*>(out);
  auto const* const from = reinterpret_cast<__m128i const*>(row);
  for (std::size_t i = 0; i < kWriteBytes / kVectorBytes; ++i) _mm_stream_si128(to + i, _mm_load_si128(from + i));
}

void finish_streaming() { _mm_sfence(); }

#else

void stream_row(std::byte* out, std::byte const* row) { std::memcpy(out, row, kWriteBytes); }

void finish_streaming() {}

#endif

/// Copy the rows of a tile to their places, each `row_bytes` long.
void put_tile(std::byte const* tile, std::size_t rows, std::size_t row_bytes, std::byte* out, std::size_t out_stride,
              bool streams) {
  for (std::size_t i = 0; i < rows; ++i) {
    if (streams && row_bytes == kWriteBytes) {
      stream_row(out + i * out_stride, tile + i * kWriteBytes);
    } else {
      std::memcpy(out + i * out_stride, tile + i * kWriteBytes, row_bytes);
    }
  }
}

/// Tile by tile. A tile is put together in a buffer of its own: the rows of large matrices lie a power of two apart,
/// so that a tile's lines would push each other out of the cache before they are full.
template <typename Element>
void transpose_matrix(MatrixView const& in, std::byte* out, std::size_t out_stride) {
  constexpr auto kTileColumns = kReadBytes / sizeof(Element);
  constexpr auto kTileRows = kWriteBytes / sizeof(Element);
  alignas(kLineBytes) std::byte tile[kTileColumns * kWriteBytes];
  auto const in_stride = in.stride * sizeof(Element);
  // A result without gaps is a buffer that will be used at once: it stays in the cache.
  auto const has_gaps = out_stride > in.rows * sizeof(Element);
  auto const whole_lines = (reinterpret_cast<std::uintptr_t>(out) | out_stride) % kLineBytes == 0;
  auto const streams = has_gaps && whole_lines;
  for (std::size_t r = 0; r < in.rows; r += kTileRows) {
    auto const rows = std::min(kTileRows, in.rows - r);
    for (std::size_t c = 0; c < in.columns; c += kTileColumns) {
      auto const columns = std::min(kTileColumns, in.columns - c);
      transpose_tile<Element>(in.data + r * in_stride + c * sizeof(Element), in_stride, rows, columns, tile,
                              kWriteBytes);
      put_tile(tile, columns, rows * sizeof(Element), out + c * out_stride + r * sizeof(Element), out_stride, streams);
    }
  }
  if (streams) finish_streaming();
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
