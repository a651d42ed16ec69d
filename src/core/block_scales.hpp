#pragma once

#include <cstdint>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

/// The edge of the square blocks of a quantised matrix that have one scale each (rule 58). Those at the right and lower
/// edges may be partial.
inline constexpr std::uint64_t kScaleBlock = 128;

/// How many blocks lie along a length; also how many of them begin before a position.
[[nodiscard]] constexpr std::uint64_t blocks_of(std::uint64_t length) {
  return (length + kScaleBlock - 1) / kScaleBlock;
}

/// The shape of the scales of a matrix, or of matrices stacked along further axes in front.
[[nodiscard]] Shape scales_shape(Shape weight);

/// Slices that share a block count its scale once: it belongs to whoever has the first element of the block (rule 59).
/// Of rows or columns, the blocks of that axis that are theirs …
[[nodiscard]] constexpr Range owned_scales(Range positions) {
  return {blocks_of(positions.begin), blocks_of(positions.end)};
}
/// … and of contiguous elements of a weight, row-major, the elements of the tensor of its scales: contiguous too.
[[nodiscard]] Range owned_scales(Shape const& weight, Range elements);

/// The bytes of the scales that are read for a slice of a piece, in the file of `StoredPiece::scales`: of its experts,
/// or of a dense tensor all of them.
[[nodiscard]] Range scale_range(Model const& model, StoredPiece const& piece, Slice const& slice);

}  // namespace rankslice
