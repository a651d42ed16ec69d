#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace rankslice::cli {

/// What MPI itself takes to say the same among the same ranks: the limit of a Communicator. Collective.
class PlainCollectives {
 public:
  virtual ~PlainCollectives() = default;
  virtual void all_reduce_sum(std::span<std::uint64_t> values) = 0;
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  /// The same size from every rank; `all`, on `root` only, has room for all of them.
  virtual void gather(std::span<std::byte const> bytes, std::span<std::byte> all, int root) = 0;
  /// To the next rank, and from the one before.
  virtual void pass_on(std::span<std::byte const> bytes, std::span<std::byte> received) = 0;
};

}  // namespace rankslice::cli
