#pragma once

#include "rankslice/mesh.hpp"

namespace rankslice {

/// @throws PlanError for a mesh that divides experts further over `ep_shard`.
void check_ep_shard(Mesh const& mesh);

}  // namespace rankslice
