#include "core/block_scales.hpp"

namespace rankslice {

namespace {

/// How many blocks of a weight, in the order of their scales, begin before an element.
std::uint64_t blocks_before(Shape const& weight, std::uint64_t element) {
  auto const columns = weight.back();
  auto const rows = weight[weight.size() - 2];
  auto const row = element / columns % rows;
  auto const in_row = row % kScaleBlock == 0 ? blocks_of(element % columns) : 0;
  return (element / columns / rows * blocks_of(rows) + blocks_of(row)) * blocks_of(columns) + in_row;
}

}  // namespace

Shape scales_shape(Shape weight) {
  for (auto axis = weight.end() - 2; axis != weight.end(); ++axis) *axis = blocks_of(*axis);
  return weight;
}

Range owned_scales(Shape const& weight, Range elements) {
  if (elements.empty()) return {};
  return {blocks_before(weight, elements.begin), blocks_before(weight, elements.end)};
}

Range scale_range(Model const& model, StoredPiece const& piece, Slice const& slice) {
  if (!piece.scales || slice.empty()) return {};
  auto const& all = piece.scales->bytes;
  if (!model.parameters[piece.parameter].stacked_experts) return all;
  auto const per_expert = all.size() / piece.slice.part.size();
  auto const at = [&](std::uint64_t expert) { return all.begin + (expert - piece.slice.part.begin) * per_expert; };
  return {at(slice.part.begin), at(slice.part.end)};
}

}  // namespace rankslice
