#pragma once

#include <cstddef>
#include <span>

#include "rankslice/dtype.hpp"

namespace rankslice {

/// Element by element, to nearest, ties to even; beyond the largest number lies infinity, and for F8_E4M3 the largest
/// number itself, ±448, also for infinities. Numbers get the bits that PyTorch gives them. A NaN stays one and keeps
/// its sign and as much of its payload as fits (PyTorch keeps less, and what depends on the processor and the place in
/// the tensor), so what is widened comes back to the same bits. The spans hold the same number of elements and do not
/// overlap. @throws PlanError for dtypes other than BF16, F16, F32 and F8_E4M3, and for one to itself.
void convert(std::span<std::byte const> in, DType from, std::span<std::byte> out, DType to);

}  // namespace rankslice
