#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "rankslice/mesh.hpp"

#include "core/literals.hpp"
#include "plan/plan.hpp"

namespace rankslice {

/// A part of a block, and the rank that sends it.
struct GatherPart {
  int owner = 0;
  Slice slice;
};

/// What travels at once: one expert, or a few MiB of a dense tensor.
struct GatherBlock {
  std::uint32_t parameter = 0;
  Slice slice;
  /// Make up the slice, each contiguous in it; several where no rank holds all of it. None where every rank has the
  /// block itself, or it is empty.
  std::vector<GatherPart> parts;
};

/// Which blocks travel, from whom, in which order: the same on every rank.
struct GatherPlan {
  std::vector<GatherBlock> blocks;
  std::vector<Range> batches;  ///< Of `blocks`; after each of them the ranks agree.
};

/// Who has what before it is gathered.
struct GatherOwners {
  Holdings holdings{};
  /// Every rank has all dense tensors that are held as the mesh says, as in a state dict. Else, where ranks share the
  /// reading of a checkpoint, dense blocks are dealt to them in turn.
  bool dense_everywhere = true;
  /// The only rank that receives, if it is one: it takes its own copy of what it has itself.
  std::optional<int> receiver{};
};

/// The blocks that make up `wanted`, whole parameters, in their order. Ranks that hold the same share the sending.
/// Pure.
/// @throws PlanError when `ep_shard` does not divide the rows
[[nodiscard]] GatherPlan plan_gather(Model const& model, std::vector<PlannedSlice> const& wanted,
                                     GatherOwners const& owners, std::uint64_t batch_bytes = 1_GiB);

/// Those of its blocks that belong to some units (`plan/segments.hpp`). Pure.
[[nodiscard]] GatherPlan cut_by_units(Model const& model, GatherPlan const& plan,
                                      std::vector<PlannedSlice> const& units, std::uint64_t batch_bytes = 1_GiB);

/// The slices that the blocks of a batch make up, in their order. Pure.
[[nodiscard]] std::vector<PlannedSlice> slices_of(GatherPlan const& plan, Range batch);

/// What one rank sends of a plan, in the order of its blocks. Pure.
[[nodiscard]] std::vector<PlannedSlice> slices_sent_by(GatherPlan const& plan, int rank);

/// How blocks travel: from their owner to a root, and from there to all who receive.
struct GatherRoute {
  std::vector<int> roots;      ///< By owner.
  std::vector<int> receivers;  ///< Every root is one of them.
};

/// To one rank. Pure, as are the others.
[[nodiscard]] GatherRoute route_to(int receiver, int ranks);
/// To all ranks, straight from each owner.
[[nodiscard]] GatherRoute route_to_all(int ranks);
/// To the first rank of each host; an owner sends to that of its own. `first_ranks`: for every rank that of its host.
[[nodiscard]] GatherRoute route_to_hosts(std::vector<int> const& first_ranks);

/// Bytes that a rank hands to the network and takes from it. A broadcast is sent once, by its root.
struct GatherTraffic {
  std::uint64_t sent = 0;
  std::uint64_t received = 0;
};

/// By rank. Pure.
[[nodiscard]] std::vector<GatherTraffic> gather_traffic(Model const& model, GatherPlan const& plan,
                                                        GatherRoute const& route);

}  // namespace rankslice
