#include "plan/held.hpp"

#include <fmt/format.h>

#include <algorithm>

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
  if (!divides(mesh, parameter)) {
    throw PlanError(fmt::format("{}: {} dim 1 ({}) is not divisible by ep_shard_size={}", parameter.fqn,
                                upstream_name(parameter.fqn), rows, mesh.ep_shard),
                    parameter.fqn);
  }
  return part_of(rows, mesh.ep_shard, coordinate.ep_shard);
}

}  // namespace

bool divides(Mesh const& mesh, Parameter const& parameter) {
  return !parameter.stacked_experts || parameter.row_count() % static_cast<std::uint64_t>(mesh.ep_shard) == 0;
}

Slice held_slice(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate) {
  require_inside(mesh, coordinate);
  if (!parameter.stacked_experts) return parameter.whole();
  return {.part = part_of(parameter.part_count(), mesh.ep, coordinate.ep),
          .rows = held_rows(parameter, mesh, coordinate)};
}

HeldShare held_share(Model const& model, std::uint32_t parameter, Holdings const& holdings, int rank) {
  if (auto const* const division = holdings.division(parameter)) {
    auto const part = division->part_of(rank);
    if (part == division->parts().size()) return {.slice = division->held_by(rank)};
    auto const& holders = division->parts()[part].holders;
    return {.slice = division->held_by(rank),
            .place = static_cast<std::uint64_t>(std::ranges::lower_bound(holders, rank) - holders.begin()),
            .holders = holders.size(),
            .ranks = holders};
  }
  auto const& mesh = holdings.mesh;
  auto const at = mesh.coordinate(rank);
  auto const stacked = model.parameters[parameter].stacked_experts;
  return {.slice = held_slice(model.parameters[parameter], mesh, at),
          .place = static_cast<std::uint64_t>(stacked ? at.ep_replicate : rank),
          .holders = static_cast<std::uint64_t>(stacked ? mesh.ep_replicate : mesh.ranks())};
}

std::optional<int> holder_of_expert(Parameter const& parameter, std::uint32_t index, Holdings const& holdings,
                                    std::uint64_t expert) {
  if (auto const* const division = holdings.division(index)) {
    Slice const whole{.part = {expert, expert + 1}, .rows = {0, parameter.row_count()}};
    auto const holds = [&](HeldPart const& part) { return intersection(part.slice, whole) == whole; };
    auto const found = std::ranges::find_if(division->parts(), holds);
    return found == division->parts().end() ? std::nullopt : std::optional(found->holders.front());
  }
  auto const& mesh = holdings.mesh;
  if (mesh.ep_shard > 1) return std::nullopt;
  return static_cast<int>(part_with(expert, parameter.part_count(), static_cast<std::uint64_t>(mesh.ep)));
}

}  // namespace rankslice
