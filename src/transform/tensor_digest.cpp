#include "transform/tensor_digest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "rankslice/error.hpp"

#include "transform/weigh.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kMostPositions = std::uint64_t{1} << 31;
constexpr std::uint64_t kMostKept = std::uint64_t{1} << 20;
constexpr std::size_t kWindow = 1024;

}  // namespace

AxisFactors::AxisFactors(DigestAxis axis, std::uint64_t size) : axis_(axis) {
  if (size > kMostKept) return;
  kept_.resize(size);
  for (std::uint64_t i = 0; i < size; ++i) kept_[i] = at(i);
}

std::uint64_t AxisFactors::weigh(Weigh kernel, std::uint64_t first, std::byte const* words, std::uint64_t count,
                                 std::uint64_t stride) const {
  if (!kept_.empty()) return kernel(words, kept_.data() + first, count);
  std::array<std::uint32_t, kWindow> window;
  std::uint64_t sum = 0;
  for (std::uint64_t done = 0; done < count; done += kWindow) {
    auto const size = std::min(kWindow, count - done);
    for (std::size_t i = 0; i < size; ++i) window[i] = at(first + done + i);
    sum += kernel(words + done * stride, window.data(), size);
  }
  return sum;
}

TensorDigest::Words::Words(DType dtype, Shape const& hf_shape) {
  auto const as_bytes = sub_byte(dtype);
  auto const shape = as_bytes ? Shape{byte_size(dtype, hf_shape)} : hf_shape;
  auto const element = as_bytes ? 1 : element_bytes(dtype);
  bytes = std::min<std::uint64_t>(element, 4);
  per_element = element / bytes;
  if (element_count(shape) == 0) {
    experts = 0;
    return;
  }
  if (shape.size() >= 3) experts = shape.front();
  for (std::size_t axis = shape.size() >= 3 ? 1 : 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
  columns = shape.empty() ? per_element : shape.back() * per_element;
  if (rows > kMostPositions || columns > kMostPositions) {
    throw FormatError(fmt::format("a tensor of shape {} has {} rows of {} words each, expected at most 2^31 of both",
                                  to_string(hf_shape), rows, columns));
  }
}

TensorDigest::TensorDigest(DType dtype, Shape const& hf_shape)
    : words_(dtype, hf_shape),
      row_factors_(DigestAxis::row, words_.rows),
      column_factors_(DigestAxis::column, words_.columns) {}

std::size_t TensorDigest::entries(DType dtype, Shape const& hf_shape) {
  if (hf_shape.size() < 3 || sub_byte(dtype)) return 1;
  return element_count(hf_shape) == 0 ? 0 : hf_shape.front();
}

void TensorDigest::check_inside(std::uint64_t first_element, std::uint64_t elements) const {
  auto const total = words_.experts * words_.rows * (words_.columns / words_.per_element);
  if (first_element <= total && elements <= total - first_element) return;
  throw PlanError(fmt::format("a digest of {} elements from element {} on, of a tensor that has {}", elements,
                              first_element, total));
}

void TensorDigest::add(std::uint64_t first_element, std::span<std::byte const> bytes,
                       std::span<std::uint64_t> d) const {
  check_inside(first_element, bytes.size() / (words_.bytes * words_.per_element));
  auto const kernel = weigh_kernel(words_.bytes, words_.bytes, instruction_set());
  auto const first = first_element * words_.per_element;
  auto column = first % words_.columns;
  for (auto row = first / words_.columns; !bytes.empty(); ++row, column = 0) {
    auto const count = std::min(bytes.size() / words_.bytes, words_.columns - column);
    auto const entry = row / words_.rows;
    auto const weight = expert_factor(entry) * row_factors_.at(row % words_.rows);
    d[entry] += weight * column_factors_.weigh(kernel, column, bytes.data(), count, words_.bytes);
    bytes = bytes.subspan(count * words_.bytes);
  }
}

void TensorDigest::add_swapped(std::uint64_t first_element, std::span<std::byte const> bytes,
                               std::span<std::uint64_t> d) const {
  auto const element = words_.bytes * words_.per_element;
  check_inside(first_element, bytes.size() / element);
  auto const kernel = weigh_kernel(words_.bytes, element, instruction_set());
  auto const columns = words_.columns / words_.per_element;
  auto row = first_element % words_.rows;
  for (auto column = first_element / words_.rows; !bytes.empty(); ++column, row = 0) {
    auto const count = std::min(bytes.size() / element, words_.rows - row);
    auto const entry = column / columns;
    for (std::uint64_t part = 0; part < words_.per_element; ++part) {
      auto const weight = expert_factor(entry) * column_factors_.at(column % columns * words_.per_element + part);
      auto const* const words = bytes.data() + part * words_.bytes;
      d[entry] += weight * row_factors_.weigh(kernel, row, words, count, element);
    }
    bytes = bytes.subspan(count * element);
  }
}

std::uint64_t inverse_modulo_2_64(std::uint64_t odd) {
  auto inverse = odd;  // right in its lowest 3 bits; every step doubles them
  for (int bits_right = 3; bits_right < 64; bits_right *= 2) inverse *= 2 - odd * inverse;
  return inverse;
}

}  // namespace rankslice
