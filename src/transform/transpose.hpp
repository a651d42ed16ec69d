#pragma once

#include <cstddef>
#include <cstdint>

namespace rankslice {

/// A matrix somewhere in memory; `stride` is the distance of its rows in elements.
struct MatrixView {
  std::byte const* data = nullptr;
  std::uint64_t rows = 0, columns = 0, stride = 0;
};

/// out[c, r] = in[r, c] for r < rows, c < columns, in cache-sized tiles; the rows of `out` are `out_stride` elements
/// apart. Elements of 1, 2, 4 or 8 bytes, at any address. The memories do not overlap. Fastest where the rows of `out`
/// begin at cache lines and `rows` fills whole pairs of them. Local.
void transpose(MatrixView const& in, std::uint64_t element_bytes, std::byte* out, std::uint64_t out_stride);

}  // namespace rankslice
