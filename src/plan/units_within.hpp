#pragma once

#include <algorithm>
#include <cstdint>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// The units of a tensor between two bytes of all dense bytes laid end to end, of which its own begin at
/// `tensor_begin`. Bounds are rounded down to whole units, so that neighbours that share a bound share no unit and
/// leave none out. Pure.
[[nodiscard]] inline Range units_within(Range bytes, std::uint64_t tensor_begin, std::uint64_t count,
                                        std::uint64_t unit) {
  auto const unit_at = [&](std::uint64_t bound) {
    return bound <= tensor_begin ? 0 : std::min((bound - tensor_begin) / unit, count);
  };
  return {unit_at(bytes.begin), unit_at(bytes.end)};
}

}  // namespace rankslice
