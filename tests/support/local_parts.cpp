#include "support/local_parts.hpp"

#include <algorithm>

namespace rankslice::test {

namespace {

constexpr std::size_t kBefore = 65, kBehind = 64;
constexpr std::byte kUntouched{0xA5};

std::uint64_t up_to(std::uint64_t most, std::mt19937& random) {
  return std::uniform_int_distribution<std::uint64_t>(0, most)(random);
}

Range random_range(std::uint64_t length, std::mt19937& random) {
  auto const a = up_to(length, random), b = up_to(length, random);
  return {std::min(a, b), std::max(a, b)};
}

/// Ascending, from 0 to `length`: the bounds of so many runs.
std::vector<std::uint64_t> random_cuts(std::uint64_t length, std::size_t runs, std::mt19937& random) {
  std::vector<std::uint64_t> cuts{0, length};
  while (cuts.size() <= runs) cuts.push_back(up_to(length, random));
  std::ranges::sort(cuts);
  return cuts;
}

void narrow(Part& part, std::size_t axis, Range range) {
  part.offsets[axis] = range.begin;
  part.shape[axis] = range.size();
}

std::uint64_t elements(Shape const& shape, std::size_t first_axis) {
  std::uint64_t count = 1;
  for (auto axis = first_axis; axis < shape.size(); ++axis) count *= shape[axis];
  return count;
}

}  // namespace

Part whole_part(Shape const& global) { return {.offsets = Shape(global.size(), 0), .shape = global}; }

Part random_part(Parameter const& parameter, std::mt19937& random) {
  auto part = whole_part(parameter.shape);
  if (part.shape.empty()) return part;
  auto const empty = up_to(7, random) == 0;
  auto const at = up_to(parameter.shape[0], random);
  narrow(part, 0, empty ? Range{at, at} : random_range(parameter.shape[0], random));
  if (parameter.stacked_experts) narrow(part, 1, random_range(parameter.shape[1], random));
  return part;
}

std::vector<Part> random_tiling(Parameter const& parameter, std::size_t ranks, std::mt19937& random) {
  std::vector<Part> parts(ranks, whole_part(parameter.shape));
  auto const per_run = parameter.stacked_experts ? 2U : 1U;
  if (parameter.shape.empty()) {
    parts.resize(1);
    return parts;
  }
  auto const cuts = random_cuts(parameter.shape[0], ranks / per_run, random);
  for (std::size_t i = 0; i < ranks; ++i) narrow(parts[i], 0, {cuts[i / per_run], cuts[i / per_run + 1]});
  if (!parameter.stacked_experts) return parts;
  for (std::size_t i = 0; i < ranks; i += 2) {
    auto const rows = random_cuts(parameter.shape[1], 2, random);
    narrow(parts[i], 1, {rows[0], rows[1]});
    narrow(parts[i + 1], 1, {rows[1], rows[2]});
  }
  return parts;
}

Bytes bytes_in(Part const& part, Bytes const& whole, Shape const& global, std::uint64_t element_size) {
  if (global.empty()) return whole;
  auto const second = global.size() > 1;
  auto const rows = second ? global[1] : 1;
  auto const row_bytes = elements(global, 2) * element_size;
  auto const first_row = second ? part.offsets[1] : 0;
  auto const row_count = second ? part.shape[1] : 1;
  Bytes bytes;
  for (auto i = part.offsets[0]; i < part.offsets[0] + part.shape[0]; ++i) {
    auto const begin = whole.begin() + std::ptrdiff_t((i * rows + first_row) * row_bytes);
    bytes.insert(bytes.end(), begin, begin + std::ptrdiff_t(row_count * row_bytes));
  }
  return bytes;
}

OddMemory::OddMemory(std::uint64_t bytes) : memory_(std::make_shared<Bytes>(kBefore + bytes + kBehind, kUntouched)) {}

Buffer OddMemory::buffer() const {
  return {.data = {memory_, memory_->data() + kBefore}, .bytes = memory_->size() - kBefore - kBehind};
}

Bytes OddMemory::bytes() const {
  auto const span = buffer().span();
  return {span.begin(), span.end()};
}

bool OddMemory::surroundings_untouched() const {
  auto const untouched = [](std::byte byte) { return byte == kUntouched; };
  return std::all_of(memory_->begin(), memory_->begin() + kBefore, untouched) &&
         std::all_of(memory_->end() - kBehind, memory_->end(), untouched);
}

void CallersTensors::add(Parameter const& parameter, Part const& part) {
  auto const& memory = memories_.emplace(parameter.fqn, byte_size(parameter.dtype, part.shape)).first->second;
  tensors_[parameter.fqn] = {.dtype = parameter.dtype,
                             .global_shape = parameter.shape,
                             .data = memory.buffer(),
                             .offsets = part.offsets,
                             .local_shape = part.shape};
}

}  // namespace rankslice::test
