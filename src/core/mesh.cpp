#include "rankslice/mesh.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

namespace rankslice {

MeshCoordinate Mesh::coordinate(int rank) const {
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
