#include "plan/experts.hpp"

#include <fmt/format.h>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

Range part_of(std::uint64_t count, int parts, int index) {
  return balanced_part(count, static_cast<std::uint64_t>(parts), static_cast<std::uint64_t>(index));
}

}  // namespace

Range held_experts(std::uint64_t count, Mesh const& mesh, MeshCoordinate const& coordinate) {
  if (mesh.ep_shard != 1) throw PlanError(fmt::format("ep_shard = {}: only 1 is in this version", mesh.ep_shard));
  return part_of(count, mesh.ep, coordinate.ep);
}

Range written_experts(std::uint64_t count, Mesh const& mesh, MeshCoordinate const& coordinate) {
  auto const held = held_experts(count, mesh, coordinate);
  auto const share = part_of(held.size(), mesh.ep_replicate, coordinate.ep_replicate);
  return {held.begin + share.begin, held.begin + share.end};
}

}  // namespace rankslice
