#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "rankslice/buffer.hpp"
#include "rankslice/communicator.hpp"

#include "plan/gather_plan.hpp"
#include "slice_writer.hpp"
#include "to_the_end.hpp"

namespace rankslice {

/// Note [One communicator of GPUs]. What is under way on two communicators of GPUs at once may wait for each other
/// forever: each is in order on a stream of its own, and the GPU need not run both. So where the world is one, blocks
/// go from the roots to the other receivers on the world too, on which the owners send them to the roots.

/// The ways along which blocks travel in one gather.
class GatherPaths {
 public:
  /// Collective.
  GatherPaths(GatherRoute route, Communicator& world);

  [[nodiscard]] bool receives() const { return place_ >= 0; }
  [[nodiscard]] int root_of(int owner) const { return route_.roots[static_cast<std::size_t>(owner)]; }
  /// Of all who receive; null where that is one rank, or this is none of them, or the roots send to each of them.
  [[nodiscard]] Communicator* receivers() const;
  /// The other receivers that a root sends to, one by one, on the world (Note [One communicator of GPUs]).
  [[nodiscard]] std::vector<int> const& sent_to() const { return sent_to_; }
  /// The rank among them of one of the world's.
  [[nodiscard]] int place_of(int rank) const;
  [[nodiscard]] Communicator& world() const { return world_; }

 private:
  GatherRoute route_;
  Communicator& world_;
  std::unique_ptr<Communicator> part_;  // of the world, where not all of it receives
  std::vector<int> sent_to_;
  int place_ = -1;  // of this rank among those who receive
};

/// Tensors of all ranks: whatever this one does not have itself comes from its owner, block by block, while the block
/// before is used. Owners send from where their own source keeps the bytes. Blocks on their way are bounded: three, in
/// memory that is used again.
/// A rank that fails alone, in its own source or in what it does with a block, goes on to the end of the batch
/// (Note [To the end]).
class GatheredTensors final : public NativeSource {
 public:
  /// Called on those who receive with what a batch brings: they take all of it from the source, in this order.
  using BatchStep = std::function<void(std::vector<PlannedSlice> const& slices, NativeSource& gathered)>;

  /// All of them outlive the result. `sent` is called after every block that this rank sends.
  GatheredTensors(Model const& model, GatherPlan const& plan, GatherPaths const& paths, NativeSource& own,
                  BlockDone sent);

  /// Gather all blocks of the plan. Collective.
  void gather(BatchStep const& use);

  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override;

 private:
  /// A block on its way.
  struct Travelling {
    Buffer buffer;                                  // for what has to be put together, or kept
    std::vector<std::span<std::byte const>> parts;  // of this rank's own; empty: another's
    std::vector<std::unique_ptr<PendingTransfer>> to_root, to_receivers;
    NativeBox<std::byte const> box;
  };

  void try_ways() const;
  void take_part(Range batch, BatchStep const& use);
  void next(BoxStep const* use);
  void start_to_root(std::uint64_t block);
  void start_to_receivers(std::uint64_t block);
  void start_one_by_one(Travelling& travelling, std::span<std::byte const> bytes, int root);
  void settle();
  [[nodiscard]] std::span<std::byte const> own_bytes(Travelling& travelling, GatherBlock const& block,
                                                     GatherPart const& part);
  [[nodiscard]] Travelling& travelling(std::uint64_t block) { return travelling_[block % travelling_.size()]; }
  [[nodiscard]] std::span<std::byte> room_for(Travelling& travelling, GatherBlock const& block,
                                              Slice const& part) const;

  Model const& model_;
  GatherPlan const& plan_;
  GatherPaths const& paths_;
  NativeSource& own_;
  BlockDone sent_;
  std::array<Travelling, 3> travelling_;
  // Blocks before these are on their way to their root, to all who receive, and used.
  std::uint64_t to_root_ = 0, to_receivers_ = 0, used_ = 0;
  std::uint64_t end_ = 0;  // of the batch
  ToTheEnd to_the_end_;
};

}  // namespace rankslice
