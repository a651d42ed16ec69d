#include "transform/tensor_digest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "rankslice/error.hpp"

#include "transform/weigh.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kMostPositions = std::uint64_t{1} << 31;
constexpr std::uint64_t kMostKept = std::uint64_t{1} << 18;  // all vocabularies; tables of 2.5 MiB
constexpr std::size_t kWindow = 1024;
constexpr std::size_t kLines = 64;  // that are weighed before they count

}  // namespace

void AxisFactors::weigh(WordLines const& words, std::uint64_t first, std::span<std::uint64_t> sums) const {
  if (size_ <= kMostKept) {
    std::call_once(filled_, [this] { kept_.fill(axis_, 0, size_); });
    return weigh_lines(words, kept_.from(first), sums.data());
  }
  std::ranges::fill(sums, 0);
  FactorTable window;
  std::array<std::uint64_t, kLines> of_window{};
  for (std::uint64_t done = 0; done < words.count; done += kWindow) {
    auto part = words;
    part.data += done * words.word_stride;
    part.count = std::min<std::uint64_t>(kWindow, words.count - done);
    window.fill(axis_, first + done, part.count);
    weigh_lines(part, window.from(0), of_window.data());
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += of_window[i];
  }
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
  Lines const lines{.along = column_factors_,
                    .across = row_factors_,
                    .of_entry = words_.rows,
                    .length = words_.columns,
                    .word_stride = words_.bytes};
  add_lines(lines, first_element * words_.per_element, bytes.data(), bytes.size() / words_.bytes, d);
}

void TensorDigest::add_swapped(std::uint64_t first_element, std::span<std::byte const> bytes,
                               std::span<std::uint64_t> d) const {
  auto const element = words_.bytes * words_.per_element;
  check_inside(first_element, bytes.size() / element);
  for (std::uint64_t half = 0; half < words_.per_element; ++half) {
    Lines const lines{.along = row_factors_,
                      .across = column_factors_,
                      .of_entry = words_.columns / words_.per_element,
                      .length = words_.rows,
                      .word_stride = element,
                      .first_across = half,
                      .step_across = words_.per_element};
    add_lines(lines, first_element, bytes.data() + half * words_.bytes, bytes.size() / element, d);
  }
}

/// Whole lines are weighed together.
void TensorDigest::add_lines(Lines const& lines, std::uint64_t first_word, std::byte const* words, std::uint64_t count,
                             std::span<std::uint64_t> d) const {
  std::array<std::uint64_t, kLines> sums;
  while (count > 0) {
    auto const line = first_word / lines.length;
    auto const position = first_word % lines.length;
    auto const whole = position == 0 ? std::min<std::uint64_t>(kLines, count / lines.length) : 0;
    WordLines const part{.data = words,
                         .word_bytes = words_.bytes,
                         .word_stride = lines.word_stride,
                         .count = whole > 0 ? lines.length : std::min(count, lines.length - position),
                         .lines = std::max<std::uint64_t>(1, whole),
                         .line_stride = lines.length * lines.word_stride};
    lines.along.weigh(part, position, std::span(sums).first(part.lines));
    for (std::uint64_t i = 0; i < part.lines; ++i) {
      auto const entry = (line + i) / lines.of_entry;
      auto const across = lines.first_across + (line + i) % lines.of_entry * lines.step_across;
      d[entry] += expert_factor(entry) * lines.across.at(across) * sums[i];
    }
    auto const done = part.lines * part.count;
    first_word += done;
    words += done * lines.word_stride;
    count -= done;
  }
}

std::uint64_t inverse_modulo_2_64(std::uint64_t odd) {
  auto inverse = odd;  // right in its lowest 3 bits; every step doubles them
  for (int bits_right = 3; bits_right < 64; bits_right *= 2) inverse *= 2 - odd * inverse;
  return inverse;
}

}  // namespace rankslice
