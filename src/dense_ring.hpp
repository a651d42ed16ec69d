#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "rankslice/buffer.hpp"
#include "rankslice/communicator.hpp"
#include "rankslice/digest.hpp"

#include "plan/dense_shares.hpp"
#include "to_the_end.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// All ranks, those of one host side by side, so that shares enter and leave each host once: each hands on to the next,
/// and the last to the first. Local.
[[nodiscard]] std::vector<int> ring_of(Communicator const& world);

/// Hands the shares of dense tensors around, until every rank has all of them.
///
/// Note [The ring]. Every rank takes the same steps: in step k it starts to send one piece to the next rank and to
/// receive one from the rank before. Pieces go around in groups, of `kAhead` from each rank: first a rank sends its
/// own, then what has come just before, and in the last steps of a group comes what the next rank had at first. So a
/// piece is passed on as soon as it is there, and what is under way is bounded. A rank waits only for what others send
/// and receive in steps before its own, so the one that is furthest behind can always go on. Pieces of large tensors
/// are sent from where they belong, and received there. Several small slices, and memory of a device that the
/// communicator does not take, pass through buffers. What fails on one rank alone (its device, the caller's callback)
/// waits until the pieces of the batch are around, as in Note [To the end].
class DenseRing {
 public:
  /// `memory`: of every shared parameter, by its index. After every batch the ranks agree. `model` and `world` outlive
  /// the result. Local.
  DenseRing(Model const& model, DenseShares const& shares, std::vector<Buffer> memory, Communicator& world,
            std::uint64_t piece_bytes = 4_MiB, std::uint64_t batch_bytes = 1_GiB);

  /// What this rank receives.
  [[nodiscard]] std::uint64_t bytes() const;
  /// Calls `received` with what has come. Collective. @throws DeviceError, and what `received` throws
  void hand_around(BlockDone const& received);

 private:
  static constexpr std::uint64_t kAhead = 2;

  struct Step {
    std::span<std::byte> came;  // what is received
    std::unique_ptr<PendingTransfer> receive, send;
  };
  /// What is sent in a step: a piece of the rank so many places back, which was received `width` steps before if it is
  /// not this one's own. What is received is that of one place further back.
  struct Turn {
    std::uint64_t piece = 0, places_back = 0, width = 0;
  };

  void take_steps(Range steps, BlockDone const& received);
  void start(std::uint64_t step);
  void finish_receives(std::uint64_t end, BlockDone const& received);
  void finish_sends(std::uint64_t end);
  [[nodiscard]] Turn turn(std::uint64_t step) const;
  [[nodiscard]] Step& at(std::uint64_t step) { return steps_[step % steps_.size()]; }
  [[nodiscard]] SharePiece const& piece(std::uint64_t places_back, std::uint64_t number) const;
  [[nodiscard]] bool travels_directly(SharePiece const& piece) const;
  [[nodiscard]] std::span<std::byte> place_of(SharePiece const& piece, std::uint64_t slot);
  [[nodiscard]] std::byte* address(PlannedSlice const& slice) const;
  void pack(SharePiece const& piece, std::span<std::byte> bytes) const;
  void unpack(SharePiece const& piece, std::span<std::byte const> bytes) const;
  void finish_devices() const;

  Model const& model_;
  std::vector<std::vector<SharePiece>> pieces_;  // by rank
  std::vector<Buffer> memory_;                   // by parameter
  Communicator& world_;
  std::vector<int> ring_;
  std::uint64_t place_ = 0;  // of this rank in the ring
  std::uint64_t batch_ = 0;  // pieces of each rank
  std::uint64_t slot_bytes_ = 0;
  Buffer slots_;  // of what is received in the last steps, and of what is sent of this rank's own
  std::array<Step, 2 * kAhead> steps_;
  std::uint64_t received_ = 0, sent_ = 0;  // steps before these
  ToTheEnd to_the_end_;
};

/// The digests of what is shared become those of whole tensors, of which each rank has read its share. Collective.
void add_shares_of_all(Digests& read, Model const& model, DenseShares const& shares, Communicator& world);

}  // namespace rankslice
