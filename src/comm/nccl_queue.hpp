#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "rankslice/communicator.hpp"

#include "comm/nccl_calls.hpp"
#include "comm/staging_ring.hpp"
#include "device/cuda_check.hpp"

namespace rankslice {

/// Bytes that are sent, received, broadcast in place, or reduced in place as uint64.
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
/// Note [Rounds]. NCCL carries out what is on a stream in order, and each call blocks it until the other ranks come;
/// only the calls of one group move independently. So the queue launches rounds, several of which lie on the stream at
/// once: a piece of a collective call, alone, since groups of those must look the same on every rank; or one group of
/// sends and receives, with one piece for each direction of each peer. No pair of ranks is then ahead of another by
/// more than the ranks are by rounds, so that ranks which exchange whatever they have cannot wait for each other in a
/// circle. Both sides of a transfer cut it into the same pieces, whether it is in the GPU's memory or the host's.
/// Bytes of host memory pass through pinned memory, which NCCL reads and writes in place. When that is short, a round
/// waits for those before it.
/// Nothing here waits: `advance` does what can be done, and whoever waits calls it again and again.
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
  /// Leaves the stream and its memory to a GPU that is stuck. Nothing else is called after it.
  void leak() noexcept;

 private:
  struct Piece {
    std::shared_ptr<NcclOperation> operation;
    std::span<std::byte> bytes;   ///< The caller's.
    std::byte* staged = nullptr;  ///< Where NCCL finds them; null: in place.
  };
  using Pieces = std::vector<Piece>;
  struct Round {
    UniqueCudaEvent arrived;
    Pieces pieces;
    std::size_t ring_mark = 0;
  };

  [[nodiscard]] Pieces next_pieces() const;
  [[nodiscard]] Pieces next_transfers() const;
  [[nodiscard]] bool find_room(Pieces& pieces);
  void hand_over(Round& round, Pieces pieces);
  [[nodiscard]] ncclResult_t post(Piece const& piece);
  void mark_launched();
  void finish_arrived();

  NcclComm& comm_;
  std::size_t piece_bytes_;             ///< Of what is sent and received.
  std::size_t collective_piece_bytes_;  ///< Larger: many ranks pass a piece on before the next one comes.
  UniqueCudaStream stream_;
  UniquePinned pinned_;
  StagingRing ring_;
  std::array<Round, 16> rounds_;
  std::deque<std::shared_ptr<NcclOperation>> waiting_;
  std::size_t oldest_ = 0;     ///< The round that was launched first of those under way.
  std::size_t under_way_ = 0;  ///< Rounds.
  bool launching_ = false;     ///< NCCL still brings the newest of them onto the stream.
};

/// A communicator and those that were split from it. Ranks may wait for one while others need what was started on
/// another, so whoever waits carries all of them on; and when one fails, none is used any more.
struct NcclFamily {
  struct Member {
    NcclComm* comm = nullptr;
    NcclQueue* queue = nullptr;
  };

  std::vector<Member> members;
  std::exception_ptr failure;

  /// @throws NcclFailure
  void advance();
  [[nodiscard]] bool all_launched() const;
  [[nodiscard]] bool idle() const;
  /// Does nothing the second time.
  void abort() noexcept;
};

/// Within a bound, past which what they use leaks.
void abort_members(std::span<NcclFamily::Member const> members) noexcept;

}  // namespace rankslice
