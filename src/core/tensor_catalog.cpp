#include "rankslice/tensor_catalog.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/checked.hpp"

namespace rankslice {

Range intersection(Range a, Range b) {
  auto const begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

std::uint64_t element_count(Shape const& shape) {
  std::uint64_t count = 1;
  for (auto const axis : shape) count *= axis;
  return count;
}

std::uint64_t byte_size(DType dtype, Shape const& shape) {
  auto const count = element_count(shape);  // times bits may not fit
  return count / 8 * bits(dtype) + count % 8 * bits(dtype) / 8;
}

std::string to_string(Shape const& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::optional<std::uint64_t> checked_byte_size(DType dtype, Shape const& shape) {
  std::uint64_t count = 1;
  for (auto const axis : shape) {
    auto const product = checked_multiply(count, axis);
    if (!product) return std::nullopt;
    count = *product;
  }
  auto const total_bits = checked_multiply(count, bits(dtype));
  if (!total_bits || *total_bits % 8 != 0) return std::nullopt;
  return *total_bits / 8;
}

}  // namespace rankslice
