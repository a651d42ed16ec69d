#pragma once

#include "rankslice/mesh.hpp"

namespace rankslice {

/// @throws PlanError for a mesh with a dimension below 1, or with more ranks than an int counts.
void require_valid(Mesh const& mesh);

/// @throws PlanError as above, or for a coordinate outside the mesh.
void require_inside(Mesh const& mesh, MeshCoordinate const& at);

/// "1 × 2 × 4": `ep_replicate`, `ep_shard`, `ep`
[[nodiscard]] std::string to_string(Mesh const& mesh);

}  // namespace rankslice
