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

/// The ranks that work together. One thread per rank calls it. Every wait has the deadline of the implementation, which
/// counts from the slowest rank's last progress; past it the job is aborted with `ExitCode::timeout`, naming the
/// ranks that did not answer.
class Communicator {
 public:
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  /// "mpi", "none", …: for the report.
  [[nodiscard]] virtual std::string_view kind() const = 0;

  /// Element-wise over all ranks, in place; the same length everywhere. Sums are modulo 2^64. Collective.
  virtual void all_reduce(std::span<std::uint64_t> values, Reduce op) = 0;
  /// From `root` to all; every rank passes the same size. Collective.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  /// Everyone's bytes on `root`, by rank (empty elsewhere); sizes may differ. Collective.
  [[nodiscard]] virtual std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) = 0;
  /// A communicator of the ranks that pass the same colour, ordered by rank. Collective.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color) = 0;

  /// The start of a step: until the agreement that ends it, this rank owes the others `progress()` within every
  /// deadline, or counts as stuck. Outside steps and collective calls nobody watches it. Local.
  virtual void begin_step() {}
  /// The end of a step that can fail on one rank alone: returns the outcome of the lowest failing rank, or a good one.
  /// The same on every rank. Collective.
  [[nodiscard]] virtual Outcome agree(Outcome const& mine) = 0;
  /// Tells the waiting ranks that this one is alive and getting on. Cheap: call it with every block. Local.
  virtual void progress() = 0;
};

/// A communicator of one rank; needs no MPI.
[[nodiscard]] std::unique_ptr<Communicator> make_solo_communicator();

/// Run `step` on every rank, then agree: the exception of the lowest failing rank becomes everyone's, of the type that
/// its exit code stands for, with message, file, tensor and `rank` set. `step` itself must not communicate. Collective.
/// @throws UnexpectedError for exceptions that are not rankslice's own.
void on_every_rank(Communicator& world, std::function<void()> const& step);

/// Broadcast bytes of a size that only `root` knows; elsewhere `bytes` is replaced. Collective.
/// @throws UnexpectedError on every rank when one has no memory for them.
void broadcast_vector(Communicator& world, std::vector<std::byte>& bytes, int root);

}  // namespace rankslice
