#include "state/local_tensor.hpp"

#include <algorithm>

#include "plan/held.hpp"

namespace rankslice {

ShardedTensor place_local_tensor(Parameter const& parameter, PlannedSlice const& planned, Mesh const& mesh) {
  auto const& slice = planned.slice;
  ShardedTensor tensor{.parameter = parameter,
                       .local_shape = parameter.shape,
                       .offsets = Shape(parameter.shape.size(), 0),
                       .placements = std::vector<Placement>(3),
                       .data = {},
                       .index = planned.parameter};
  if (parameter.stacked_experts) {
    tensor.local_shape[0] = slice.part.size();
    tensor.local_shape[1] = slice.rows.size();
    tensor.offsets[0] = slice.part.begin;
    tensor.offsets[1] = slice.rows.begin;
    tensor.placements[2] = {.kind = Placement::Kind::shard, .dim = 0};
    // Rule 16: a mesh with more dimensions than `ep` has Shard(1) on `ep_shard`, even when that has one rank.
    if (mesh.ep_replicate > 1 || mesh.ep_shard > 1) tensor.placements[1] = {.kind = Placement::Kind::shard, .dim = 1};
  }
  return tensor;
}

std::optional<Slice> slice_by_placements(ShardedTensor const& tensor, Mesh const& mesh,
                                         MeshCoordinate const& coordinate) {
  if (tensor.placements.empty()) return std::nullopt;
  return divides(mesh, tensor.parameter) ? held_slice(tensor.parameter, mesh, coordinate) : Slice{};
}

std::vector<PlannedSlice> slices_held(StateDict const& state) {
  std::vector<PlannedSlice> slices;
  for (auto const& [fqn, tensor] : state.tensors)
    slices.push_back({.parameter = tensor.index, .slice = tensor.slice()});
  return slices;
}

bool on_a_device(StateDict const& state) {
  return std::ranges::any_of(state.tensors, [](auto const& item) { return item.second.data.device != nullptr; });
}

}  // namespace rankslice
