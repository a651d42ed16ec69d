#pragma once

#include <fmt/format.h>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// @throws UsageError unless `root` is a rank of `world`.
inline void check_root(Communicator const& world, int root) {
  if (root < 0 || root >= world.size())
    throw UsageError(fmt::format("root rank {} among {} ranks", root, world.size()));
}

/// @throws UsageError unless `peer` is another rank of `world`.
inline void check_peer(Communicator const& world, int peer) {
  if (peer >= 0 && peer < world.size() && peer != world.rank()) return;
  throw UsageError(fmt::format("rank {} as another rank than {} among {} ranks", peer, world.rank(), world.size()));
}

}  // namespace rankslice
