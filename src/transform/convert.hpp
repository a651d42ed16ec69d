#pragma once

#include <cstddef>
#include <span>

#include "rankslice/dtype.hpp"

namespace rankslice {

/// Whether `convert` knows the pair: BF16 and F16 to F32 (exact; NaN payloads and signs kept) and back (to nearest,
/// ties to even; what came from the narrow type goes back to the same bits).
[[nodiscard]] bool can_convert(DType from, DType to);

/// Element by element; the spans hold the same number of elements and do not overlap. @throws PlanError for pairs that
/// `can_convert` denies.
void convert(std::span<std::byte const> in, DType from, std::span<std::byte> out, DType to);

}  // namespace rankslice
