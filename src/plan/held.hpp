#pragma once

#include "rankslice/mesh.hpp"
#include "rankslice/parameter.hpp"

namespace rankslice {

/// What a rank holds of a parameter: of a stacked one experts by rule 9 over `ep`, and of each rows by rule 14 over
/// `ep_shard`; all of a dense one.
/// @throws PlanError for a coordinate outside the mesh, or when `ep_shard` does not divide the rows (rule 15).
[[nodiscard]] Slice held_slice(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate);

/// Its share of a stacked parameter when all replicas, which hold the same, write together.
/// @throws PlanError as above.
[[nodiscard]] Slice written_slice(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate);

}  // namespace rankslice
