#pragma once

#include <cstddef>
#include <cstdint>

#include "rankslice/dtype.hpp"

#include "transform/transpose.hpp"

namespace rankslice {

/// The scales of one matrix of codes, at any address: one for each block (`kScaleBlock`), row-major, `columns` in a
/// row. BF16, F16 or F32.
struct BlockScales {
  std::byte const* data = nullptr;
  DType dtype = DType::BF16;
  std::uint64_t columns = 0;
};

/// out = to(f32(code) · f32(scale)): the product is rounded to F32 and that to `to`, which is BF16, F16 or F32.
/// `codes`, F8_E4M3, are a box of the matrix that the scales are for; its first element is at (`first_row`,
/// `first_column`) there. It may begin and end within blocks. `out`, at any address, is row-major and contiguous. The
/// memories do not overlap. Local. @throws PlanError for other dtypes.
void dequantise(MatrixView const& codes, std::uint64_t first_row, std::uint64_t first_column, BlockScales const& scales,
                std::byte* out, DType to);

}  // namespace rankslice
