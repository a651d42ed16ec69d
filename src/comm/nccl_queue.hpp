#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "rankslice/communicator.hpp"

#include "comm/nccl_calls.hpp"

namespace rankslice {

/// One call of NCCL: bytes that are sent, received, broadcast in place, or reduced in place as uint64.
struct NcclOperation {
  enum class Kind : std::uint8_t { send, receive, broadcast, reduce };

  Kind kind = Kind::send;
  std::span<std::byte> bytes;  ///< Only read where they are sent.
  int peer = 0;                ///< Or the root.
  Reduce op = Reduce::sum;
  bool on_gpu = false;

  // Kept by the queue:
  std::size_t launched = 0;  ///< Bytes that NCCL was given.
  std::size_t finished = 0;

  [[nodiscard]] bool done() const { return finished == bytes.size(); }
  [[nodiscard]] bool is_collective() const { return kind == Kind::broadcast || kind == Kind::reduce; }
};

/// The operations of one communicator, in the order in which they were added, on a stream of their own.
///
/// Note [Rounds]. NCCL carries out what is on a stream in order, and blocks it until the other rank comes; only the
/// calls of one group move independently. So the queue launches rounds: one group of all sends and receives that wait,
/// or a single collective call, since groups of those must look the same on every rank. Bytes of host memory pass
/// through pinned memory, which a round has one piece of for what it sends and one for what it receives; two rounds
/// take turns, so that one is copied while the other travels. Both sides of a transfer must cut it into the same
/// pieces, whether their memory is the GPU's or the host's. Nothing here waits: `advance` does what can be done, and
/// whoever waits calls it again and again.
class NcclQueue {
 public:
  /// Allocates on `device`. `comm` is borrowed. @throws NcclFailure
  NcclQueue(NcclComm& comm, int device, std::size_t staging_bytes);

  void add(std::shared_ptr<NcclOperation> operation);
  /// @throws NcclFailure, after which only the abort of `comm` is left
  void advance();
  /// Whether all that was added has been given to NCCL.
  [[nodiscard]] bool all_launched() const { return waiting_.empty() && !launching_; }
  [[nodiscard]] bool idle() const { return all_launched() && under_way_ == 0; }

 private:
  struct Piece {
    std::shared_ptr<NcclOperation> operation;
    std::span<std::byte> bytes;   ///< The caller's.
    std::byte* staged = nullptr;  ///< Where NCCL finds them; null: in place.
  };
  struct Round {
    UniqueCudaEvent arrived;
    std::vector<Piece> pieces;
  };
  /// The pinned memory of one direction of one round.
  struct Room;

  void fill(Round& round, std::size_t half);
  void take_all(std::shared_ptr<NcclOperation> const& operation, Round& round, Room& room) const;
  [[nodiscard]] bool take_piece(std::shared_ptr<NcclOperation> const& operation, Round& round, Room& room) const;
  void launch(Round const& round);
  [[nodiscard]] ncclResult_t post(Piece const& piece);
  void mark_launched();
  void finish_arrived();

  NcclComm& comm_;
  std::size_t piece_bytes_;
  UniqueCudaStream stream_;
  UniquePinnedMemory pinned_;
  std::array<Round, 2> rounds_;
  std::deque<std::shared_ptr<NcclOperation>> waiting_;
  std::size_t oldest_ = 0;     ///< The round that was launched first of those under way.
  std::size_t under_way_ = 0;  ///< Rounds.
  bool launching_ = false;     ///< NCCL still brings the newest of them onto the stream.
};

}  // namespace rankslice
