#include "core/mesh.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "rankslice/error.hpp"

namespace rankslice {

void require_valid(Mesh const& mesh) {
  auto ranks = std::int64_t{1};
  for (auto const dimension : {mesh.ep_replicate, mesh.ep_shard, mesh.ep}) {
    ranks = dimension < 1 ? 0 : ranks * dimension;
    if (ranks >= 1 && ranks <= std::numeric_limits<int>::max()) continue;
    throw PlanError(
        fmt::format("a mesh of {} ranks (ep_replicate × ep_shard × ep): there must be at least 1 along each dimension, "
                    "and at most {} in all",
                    to_string(mesh), std::numeric_limits<int>::max()));
  }
}

void require_inside(Mesh const& mesh, MeshCoordinate const& at) {
  require_valid(mesh);
  auto const within = [](int index, int count) { return index >= 0 && index < count; };
  if (within(at.ep_replicate, mesh.ep_replicate) && within(at.ep_shard, mesh.ep_shard) && within(at.ep, mesh.ep)) {
    return;
  }
  throw PlanError(fmt::format("coordinate ({}, {}, {}) (ep_replicate, ep_shard, ep) is outside the mesh of {} ranks",
                              at.ep_replicate, at.ep_shard, at.ep, to_string(mesh)));
}

std::string to_string(Mesh const& mesh) {
  return fmt::format("{} × {} × {}", mesh.ep_replicate, mesh.ep_shard, mesh.ep);
}

MeshCoordinate Mesh::coordinate(int rank) const {
  require_valid(*this);
  if (rank < 0 || rank >= ranks()) throw PlanError(fmt::format("rank {} is outside a mesh of {} ranks", rank, ranks()));
  return {.ep_replicate = rank / (ep_shard * ep), .ep_shard = rank / ep % ep_shard, .ep = rank % ep};
}

int Mesh::rank(MeshCoordinate at) const { return (at.ep_replicate * ep_shard + at.ep_shard) * ep + at.ep; }

Mesh make_mesh(int ranks, int ep, int ep_shard) {
  if (ranks < 1) throw PlanError(fmt::format("a mesh needs at least one rank, not {}", ranks));
  if (ep < 0 || ep_shard < 1) throw PlanError(fmt::format("ep = {} and ep_shard = {} must be positive", ep, ep_shard));
  if (ep == 0) ep = ranks / ep_shard;
  auto const width = std::int64_t{ep} * ep_shard;
  if (ep == 0 || ranks % width != 0) {
    throw PlanError(
        fmt::format("ep_shard {}{} does not divide the number of ranks, {}: a mesh has ep_replicate × ep_shard × ep "
                    "ranks",
                    ep_shard, ep == 0 ? "" : fmt::format(" × ep {}", ep), ranks));
  }
  return {.ep_replicate = ranks / (ep * ep_shard), .ep_shard = ep_shard, .ep = ep};
}

Range balanced_part(std::uint64_t count, std::uint64_t parts, std::uint64_t index) {
  auto const base = count / parts;
  auto const larger = count % parts;  // so many parts get one more
  auto const begin = index * base + std::min(index, larger);
  return {begin, begin + base + (index < larger ? 1 : 0)};
}

std::uint64_t part_with(std::uint64_t item, std::uint64_t count, std::uint64_t parts) {
  auto const base = count / parts;
  auto const larger = count % parts;
  auto const in_larger = larger * (base + 1);  // all items when base is 0
  return item < in_larger ? item / (base + 1) : larger + (item - in_larger) / base;
}

}  // namespace rankslice
