#pragma once

#include <cstdint>
#include <optional>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// a·b, or nothing when it does not fit.
[[nodiscard]] inline std::optional<std::uint64_t> checked_multiply(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

/// Bytes of a tensor, or nothing when the product of the axes (taken in order) or the bits overflow, or when the bits
/// are no whole number of bytes.
[[nodiscard]] std::optional<std::uint64_t> checked_byte_size(DType dtype, Shape const& shape);

}  // namespace rankslice
