#include "plan/held.hpp"

#include <fmt/format.h>

#include "rankslice/error.hpp"

#include "core/mesh.hpp"
#include "model/key_table.hpp"

namespace rankslice {

namespace {

Range part_of(std::uint64_t count, int parts, int index) {
  return balanced_part(count, static_cast<std::uint64_t>(parts), static_cast<std::uint64_t>(index));
}

/// Rule 15 in upstream's words, behind the parameter's own name.
std::string upstream_name(std::string const& fqn) {
  auto const tail = fqn.substr(fqn.rfind('.') + 1);
  return (is_mtp(fqn) ? "MTP " : "Base ") + tail;
}

Range held_rows(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate) {
  auto const rows = parameter.row_count();
  if (rows % static_cast<std::uint64_t>(mesh.ep_shard) != 0) {
    throw PlanError(fmt::format("{}: {} dim 1 ({}) is not divisible by ep_shard_size={}", parameter.fqn,
                                upstream_name(parameter.fqn), rows, mesh.ep_shard),
                    parameter.fqn);
  }
  return part_of(rows, mesh.ep_shard, coordinate.ep_shard);
}

}  // namespace

Slice held_slice(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate) {
  require_inside(mesh, coordinate);
  if (!parameter.stacked_experts) return parameter.whole();
  return {.part = part_of(parameter.part_count(), mesh.ep, coordinate.ep),
          .rows = held_rows(parameter, mesh, coordinate)};
}

Slice written_slice(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate) {
  auto slice = held_slice(parameter, mesh, coordinate);
  auto const share = part_of(slice.part.size(), mesh.ep_replicate, coordinate.ep_replicate);
  slice.part = {slice.part.begin + share.begin, slice.part.begin + share.end};
  return slice;
}

}  // namespace rankslice
