#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// Returns when the bytes sent may be overwritten, or those received are there; called once at most. An empty one
/// means that this is so already.
using WaitFunction = std::function<void()>;

/// A group of ranks that the caller has set up (torch.distributed, mpi4py, actors, threads), as one rank sees it. Every
/// rank gives the same functions. Needed are `start_send` and `start_receive`, or else `all_reduce` and `broadcast`;
/// with the messages alone, collective calls are made of them, and with these two alone nothing can be sent between
/// two ranks. Give all four where you have them.
///
/// They are called from the thread that calls the communicator, with host memory, which stays as it is until the wait
/// function returns; never with no bytes at all. Deadlines are theirs: they throw when a rank does not answer. What
/// they throw ends the use of the communicator on this rank.
struct Collectives {
  int rank = 0;
  int size = 1;
  std::string host = {};           ///< The machine of this rank; empty: what it calls itself.
  std::string kind = "callbacks";  ///< For the report: "gloo", …

  /// Must not wait for the receiver: torch's isend, MPI's Isend, or one that buffers. Messages between two ranks with
  /// the same tag arrive in the order in which they were started; those with different tags may meet in any order.
  std::function<WaitFunction(std::span<std::byte const> bytes, int to, int tag)> start_send = {};
  /// The wait function may do all the work: those of one sender and tag are waited for in the order of their start.
  std::function<WaitFunction(std::span<std::byte> bytes, int from, int tag)> start_receive = {};

  /// In place. Sums wrap around: add as unsigned numbers. All ranks call this, `broadcast` and `split` in one order.
  std::function<void(std::span<std::int64_t> values, Reduce op)> all_reduce = {};
  std::function<WaitFunction(std::span<std::byte> bytes, int root)> broadcast = {};
  /// The group of the ranks that have this rank's colour, in their order; `colors` are by rank. Missing: messages
  /// serve the parts. As with the other collective calls, where it throws on one rank the others' deadlines count.
  std::function<Collectives(std::vector<int> const& colors)> split = {};

  /// Called whenever this rank gets on. May throw `Interrupted`, which then stops all ranks together: where this rank
  /// only waits, at its next block.
  std::function<void()> progress = {};
  /// Called when this rank gives up for all: ends the job, or makes the others fail, where that can be done.
  std::function<void(ExitCode code, std::string const& message)> abort = {};

  std::size_t largest_message = std::size_t{1} << 30;  ///< Bytes given to one call; more goes in pieces.
  std::chrono::milliseconds timeout{300'000};          ///< How long `Communicator::wait_until` polls.
};

/// A communicator over the caller's group, which outlives it. What a function throws becomes a CommError with its text
/// (rankslice's own errors pass as they are), and every later call throws the same at once. A transfer that nobody
/// waited for still waits as it is destroyed, after an error too: its memory may be written to until then. Collective;
/// the end of the result is local.
/// @throws UsageError, before any call, when rank and size or the functions make no sense together.
[[nodiscard]] std::unique_ptr<Communicator> make_communicator(Collectives group);

}  // namespace rankslice
