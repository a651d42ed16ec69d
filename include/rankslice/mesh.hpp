#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// Where one rank stands in a mesh.
struct MeshCoordinate {
  int ep_replicate = 0;
  int ep_shard = 0;
  int ep = 0;
  auto operator<=>(MeshCoordinate const&) const = default;
};

/// Ranks arranged as (`ep_replicate`, `ep_shard`, `ep`), `ep` fastest (rule 13): rank = (replicate·S + shard)·W + ep.
/// At least 1 along each dimension; whatever takes a mesh refuses another with PlanError.
struct Mesh {
  int ep_replicate = 1;
  int ep_shard = 1;
  int ep = 1;

  [[nodiscard]] int ranks() const { return ep_replicate * ep_shard * ep; }
  /// @throws PlanError for a rank outside the mesh.
  [[nodiscard]] MeshCoordinate coordinate(int rank) const;
  [[nodiscard]] int rank(MeshCoordinate at) const;
  auto operator<=>(Mesh const&) const = default;
};

/// The mesh of `ranks` ranks with expert-parallel width `ep` (0: all of them).
/// @throws PlanError when the ranks cannot be arranged so.
[[nodiscard]] Mesh make_mesh(int ranks, int ep = 0, int ep_shard = 1);

/// Rule 9: the part of [0, count) that is `index`'s when `parts` share it; the first count % parts parts get one more,
/// and there may be empty parts at the end.
[[nodiscard]] Range balanced_part(std::uint64_t count, std::uint64_t parts, std::uint64_t index);

/// The inverse: the `index` of the part that has an item of [0, count).
[[nodiscard]] std::uint64_t part_with(std::uint64_t item, std::uint64_t count, std::uint64_t parts);

/// How a tensor lies along one dimension of the mesh.
struct Placement {
  enum class Kind : std::uint8_t { replicate, shard } kind = Kind::replicate;
  int dim = 0;  ///< The sharded axis; only for `shard`.
  auto operator<=>(Placement const&) const = default;
};

}  // namespace rankslice
