#pragma once

#include "rankslice/mesh.hpp"

namespace rankslice {

/// The experts of [0, count) that a rank holds: rule 9 over `ep`.
/// @throws PlanError for a mesh that divides experts further over `ep_shard`.
[[nodiscard]] Range held_experts(std::uint64_t count, Mesh const& mesh, MeshCoordinate const& coordinate);

/// Its share of them when all replicas, which hold the same, write together.
/// @throws PlanError as above.
[[nodiscard]] Range written_experts(std::uint64_t count, Mesh const& mesh, MeshCoordinate const& coordinate);

}  // namespace rankslice
