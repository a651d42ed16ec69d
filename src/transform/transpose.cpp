#include "transform/transpose.hpp"

#include <algorithm>
#include <cstring>

// This file is compiled once for each instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "transform/transpose.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace rankslice {
namespace {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kReadBytes = kLineBytes;       // of each source row by a tile
constexpr std::size_t kWriteBytes = 2 * kLineBytes;  // of each destination row
constexpr std::size_t kBlockBytes = 16;              // what instructions shuffle elements within
constexpr std::size_t kAhead = 2 * kReadBytes;       // what is asked for so early is there when it is needed

template <typename Element>
constexpr std::size_t kTileColumns = kReadBytes / sizeof(Element);
template <typename Element>
constexpr std::size_t kTileRows = kWriteBytes / sizeof(Element);

template <typename Element>
HWY_ATTR void transpose_elements(std::byte const* in, std::size_t in_stride, std::size_t rows, std::size_t columns,
                                 std::byte* out, std::size_t out_stride) {
  for (std::size_t c = 0; c < columns; ++c) {
    for (std::size_t r = 0; r < rows; ++r) {
      std::memcpy(out + c * out_stride + r * sizeof(Element), in + r * in_stride + c * sizeof(Element),
                  sizeof(Element));
    }
  }
}

/// A whole tile that was put together and still has to go to its place.
struct Finished {
  std::byte const* tile = nullptr;  // destination rows of kWriteBytes
  std::byte* out = nullptr;
  std::size_t out_stride = 0;
};

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_HAVE_SCALABLE

template <typename Element>
HWY_ATTR void transpose_tile(std::byte const* in, std::size_t in_stride, std::size_t rows, std::size_t columns,
                             std::byte* out, std::size_t out_stride) {
  transpose_elements<Element>(in, in_stride, rows, columns, out, out_stride);
}

HWY_ATTR void write_rows(Finished const& finished, std::size_t begin, std::size_t end) {
  for (auto i = begin; i < end; ++i) {
    std::memcpy(finished.out + i * finished.out_stride, finished.tile + i * kWriteBytes, kWriteBytes);
  }
}

template <typename Element>
HWY_ATTR void transpose_whole_tile(std::byte const* in, std::size_t in_stride, std::byte* out,
                                   Finished const& finished) {
  if (finished.tile != nullptr) write_rows(finished, 0, kTileColumns<Element>);
  transpose_elements<Element>(in, in_stride, kTileRows<Element>, kTileColumns<Element>, out, kWriteBytes);
}

HWY_ATTR void finish_writing() {}

#else

/// Rows of two blocks, or of one where vectors have no more.
template <typename Element>
struct Blocks {
  using Tag = hn::CappedTag<Element, 2 * kBlockBytes / sizeof(Element)>;
  using Half = hn::Half<Tag>;
  static constexpr std::size_t kRows = kBlockBytes / sizeof(Element);  // a square in each block
  static constexpr std::size_t kColumns = hn::MaxLanes(Tag());
};

/// Transpose the squares of neighbouring blocks; strides in bytes.
///
/// Interleaving the first half of the rows with the second half turns every element's address (row bits, column bits)
/// round by one bit. As many rounds as there are column bits exchange row and column.
template <typename Element>
HWY_INLINE void transpose_squares(std::byte const* in, std::size_t in_stride, std::byte* out, std::size_t out_stride) {
  using B = Blocks<Element>;
  typename B::Tag const d;
  hn::Vec<typename B::Tag> rows[B::kRows];
  hn::Vec<typename B::Tag> turned[B::kRows];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < B::kRows; ++i) {
    rows[i] = hn::LoadU(d, reinterpret_cast<Element const*>(in + i * in_stride));
  }
#pragma GCC unroll 4
  for (std::size_t bit = 1; bit < B::kRows; bit *= 2) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < B::kRows / 2; ++i) {
      turned[2 * i] = hn::InterleaveLower(d, rows[i], rows[i + B::kRows / 2]);
      turned[2 * i + 1] = hn::InterleaveUpper(d, rows[i], rows[i + B::kRows / 2]);
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < B::kRows; ++i) rows[i] = turned[i];
  }
#pragma GCC unroll 16
  for (std::size_t i = 0; i < B::kRows; ++i) {
    auto* const to = reinterpret_cast<Element*>(out + i * out_stride);
    if constexpr (B::kColumns == B::kRows) {
      hn::StoreU(rows[i], d, to);
    } else {
      typename B::Half const half;
      hn::StoreU(hn::LowerHalf(half, rows[i]), half, to);
      hn::StoreU(hn::UpperHalf(half, rows[i]), half, to + B::kRows * out_stride / sizeof(Element));
    }
  }
}

/// Squares, and single elements where none fits any more.
template <typename Element>
HWY_ATTR void transpose_tile(std::byte const* in, std::size_t in_stride, std::size_t rows, std::size_t columns,
                             std::byte* out, std::size_t out_stride) {
  using B = Blocks<Element>;
  auto const whole_rows = rows / B::kRows * B::kRows;
  auto const whole_columns = columns / B::kColumns * B::kColumns;
  for (std::size_t r = 0; r < whole_rows; r += B::kRows) {
    for (std::size_t c = 0; c < whole_columns; c += B::kColumns) {
      transpose_squares<Element>(in + r * in_stride + c * sizeof(Element), in_stride,
                                 out + c * out_stride + r * sizeof(Element), out_stride);
    }
  }
  transpose_elements<Element>(in + whole_columns * sizeof(Element), in_stride, whole_rows, columns - whole_columns,
                              out + whole_columns * out_stride, out_stride);
  transpose_elements<Element>(in + whole_rows * in_stride, in_stride, rows - whole_rows, columns,
                              out + whole_rows * sizeof(Element), out_stride);
}

/// Past the cache: the lines of a strip's result lie far apart, and fetching each before it is overwritten costs seven
/// times as much as all the rest.
HWY_INLINE void write_rows(Finished const& finished, std::size_t begin, std::size_t end) {
  hn::CappedTag<std::uint8_t, kLineBytes> const d;
  for (auto i = begin; i < end; ++i) {
    auto const* const from = reinterpret_cast<std::uint8_t const*>(finished.tile + i * kWriteBytes);
    auto* const to = reinterpret_cast<std::uint8_t*>(finished.out + i * finished.out_stride);
#pragma GCC unroll 8
    for (std::size_t byte = 0; byte < kWriteBytes; byte += hn::MaxLanes(d)) {
      hn::Stream(hn::Load(d, from + byte), d, to + byte);
    }
  }
}

/// Write the finished tile in between: memory takes its lines more slowly than they can be given, and shuffling fills
/// the time.
template <typename Element>
HWY_ATTR void transpose_whole_tile(std::byte const* in, std::size_t in_stride, std::byte* out,
                                   Finished const& finished) {
  using B = Blocks<Element>;
  constexpr auto kAcross = kTileColumns<Element> / B::kColumns;
  constexpr auto kSteps = kTileRows<Element> / B::kRows * kAcross;
  for (std::size_t step = 0; step < kSteps; ++step) {
    auto const r = step / kAcross * B::kRows;
    auto const c = step % kAcross * B::kColumns;
    transpose_squares<Element>(in + r * in_stride + c * sizeof(Element), in_stride,
                               out + c * kWriteBytes + r * sizeof(Element), kWriteBytes);
    if (step % kAcross == 0) {
      for (std::size_t i = 0; i < B::kRows; ++i) hwy::Prefetch(in + (r + i) * in_stride + kAhead);
    }
    if (finished.tile != nullptr) {
      write_rows(finished, step * kTileColumns<Element> / kSteps, (step + 1) * kTileColumns<Element> / kSteps);
    }
  }
}

HWY_ATTR void finish_writing() { hwy::FlushStream(); }

#endif

/// Tile by tile. A tile whose lines go past the cache is put together in a buffer of its own first.
template <typename Element>
HWY_ATTR void transpose_matrix(MatrixView const& in, std::byte* out, std::size_t out_stride) {
  alignas(kLineBytes) std::byte tiles[2][kTileColumns<Element> * kWriteBytes];
  std::size_t next = 0;
  Finished finished;
  auto const in_stride = in.stride * sizeof(Element);
  // A result without gaps is a buffer that will be used at once: it stays in the cache.
  auto const has_gaps = out_stride > in.rows * sizeof(Element);
  auto const whole_lines = (reinterpret_cast<std::uintptr_t>(out) | out_stride) % kLineBytes == 0;
  auto const streams = has_gaps && whole_lines;
  for (std::size_t r = 0; r < in.rows; r += kTileRows<Element>) {
    auto const rows = std::min(kTileRows<Element>, in.rows - r);
    for (std::size_t c = 0; c < in.columns; c += kTileColumns<Element>) {
      auto const columns = std::min(kTileColumns<Element>, in.columns - c);
      auto const* const from = in.data + r * in_stride + c * sizeof(Element);
      auto* const to = out + c * out_stride + r * sizeof(Element);
      auto* const tile = tiles[next];
      if (streams && rows == kTileRows<Element> && columns == kTileColumns<Element>) {
        transpose_whole_tile<Element>(from, in_stride, tile, finished);
        finished = {.tile = tile, .out = to, .out_stride = out_stride};
        next = 1 - next;
      } else {
        transpose_tile<Element>(from, in_stride, rows, columns, to, out_stride);
      }
    }
  }
  if (finished.tile == nullptr) return;
  write_rows(finished, 0, kTileColumns<Element>);
  finish_writing();
}

HWY_ATTR void transpose_any(MatrixView const& in, std::uint64_t element_bytes, std::byte* out,
                            std::uint64_t out_stride) {
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

}  // namespace HWY_NAMESPACE
}  // namespace
}  // namespace rankslice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace rankslice {

namespace {

HWY_EXPORT(transpose_any);

}  // namespace

void transpose(MatrixView const& in, std::uint64_t element_bytes, std::byte* out, std::uint64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(transpose_any)(in, element_bytes, out, out_stride);
}

}  // namespace rankslice

#endif
