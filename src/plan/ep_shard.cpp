#include "plan/ep_shard.hpp"

#include <fmt/format.h>

#include "rankslice/error.hpp"

namespace rankslice {

void check_ep_shard(Mesh const& mesh) {
  if (mesh.ep_shard != 1) throw PlanError(fmt::format("ep_shard = {}: only 1 is in this version", mesh.ep_shard));
}

}  // namespace rankslice
