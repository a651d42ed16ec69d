#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

enum class Reduce : std::uint8_t { sum, min, max };

/// How a step went on one rank, or, once agreed, on the lowest rank where it failed.
struct Outcome {
  ExitCode code = ExitCode::done;
  int rank = -1;
  std::string message;
  std::string file;
  std::string tensor;
};

/// Bytes on their way between ranks. Their memory stays as it is until `wait` has returned. Ends before its
/// communicator.
class PendingTransfer {
 public:
  PendingTransfer() = default;
  PendingTransfer(PendingTransfer const&) = delete;
  PendingTransfer& operator=(PendingTransfer const&) = delete;
  /// Waits, if nobody has.
  virtual ~PendingTransfer() = default;
  /// Until what is sent may be overwritten, or what is received is there. A second call does nothing.
  virtual void wait() = 0;
};

/// The ranks that work together. One thread per rank calls it. Every wait has the deadline of the implementation, which
/// counts from the slowest rank's last progress; past it the job is aborted with `ExitCode::timeout`, naming the
/// ranks that did not answer. Memory is the host's, unless `takes_device_memory`.
class Communicator {
 public:
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  /// "mpi", "none", …: for the report.
  [[nodiscard]] virtual std::string_view kind() const = 0;
  /// The machine of a rank, as it calls itself.
  [[nodiscard]] virtual std::string const& host(int rank) const = 0;
  /// Whether bytes that are broadcast, sent and received may lie on this rank's GPU.
  [[nodiscard]] virtual bool takes_device_memory() const { return false; }
  /// Whether bytes can be sent from one rank to another: else there are collective calls alone.
  [[nodiscard]] virtual bool can_send() const { return true; }

  /// Element-wise over all ranks, in place; the same length everywhere. Sums are modulo 2^64. Collective.
  virtual void all_reduce(std::span<std::uint64_t> values, Reduce op) = 0;
  /// From `root` to all; every rank passes the same size. Collective.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  /// Everyone's bytes on `root`, by rank (empty elsewhere); sizes may differ. Collective.
  [[nodiscard]] virtual std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) = 0;
  /// To and from another rank, and from `root` to all, while the caller does something else; the same size on both
  /// sides. What is started between two ranks arrives in the order in which it was started. The broadcast is
  /// collective, and all ranks start theirs in the same order, among their other collective calls.
  [[nodiscard]] virtual std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) = 0;
  [[nodiscard]] virtual std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) = 0;
  [[nodiscard]] virtual std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) = 0;
  /// A communicator of the ranks that pass the same colour, ordered by rank: those along one axis of a mesh, or of one
  /// host. Collective.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color) = 0;

  /// The start of a step: until the agreement that ends it, this rank owes the others `progress()` within every
  /// deadline, or counts as stuck. Outside steps and collective calls nobody watches it. Local.
  virtual void begin_step() {}
  /// The end of a step that can fail on one rank alone: returns the outcome of the lowest failing rank, or a good one.
  /// The same on every rank. Collective.
  [[nodiscard]] virtual Outcome agree(Outcome const& mine) = 0;
  /// Tells the waiting ranks that this one is alive and getting on. Cheap: call it with every block. Local.
  virtual void progress() = 0;
  /// Polls `done`, a wait like any other: for what this rank has under way elsewhere (on its GPU). Local.
  virtual void wait_until(std::function<bool()> const& done) = 0;
  /// Gives up for all ranks: says why and ends the job with `code`, where its processes are this library's to end;
  /// else throws CommError. For when this rank can no longer take part in an agreement. Local.
  [[noreturn]] virtual void abort(ExitCode code, std::string const& message) = 0;
};

/// A communicator of one rank; needs no MPI.
[[nodiscard]] std::unique_ptr<Communicator> make_solo_communicator();

/// Run `step` on every rank, then agree: the exception of the lowest failing rank becomes everyone's, of the type that
/// its exit code stands for, with message, file, tensor and `rank` set. `step` may send and receive, and start
/// broadcasts in the same order on all ranks, if it does so to the end even where it fails; it makes no other
/// collective call. Collective.
/// @throws UnexpectedError for exceptions that are not rankslice's own.
void on_every_rank(Communicator& world, std::function<void()> const& step);

/// Broadcast bytes of a size that only `root` knows; elsewhere `bytes` is replaced. Collective.
/// @throws UnexpectedError on every rank when one has no memory for them; VerifyError when they were damaged on the way
void broadcast_vector(Communicator& world, std::vector<std::byte>& bytes, int root);

/// Everyone's bytes on every rank, by rank; sizes may differ. For small things: they pass through rank 0. Collective.
/// @throws VerifyError on every rank when something was damaged on the way
[[nodiscard]] std::vector<std::vector<std::byte>> all_gather(Communicator& world, std::span<std::byte const> bytes);

/// Returns on no rank before it was called on all. Collective.
void barrier(Communicator& world);

/// The lowest rank of each host: one that can speak for its node. Local.
[[nodiscard]] std::vector<int> first_ranks_of_hosts(Communicator const& world);

}  // namespace rankslice
