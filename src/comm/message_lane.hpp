#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// Messages that only collective calls use, so that they never meet what callers send: what is started between two
/// ranks arrives in the order in which it was started. Empty messages are allowed.
class MessageLane {
 public:
  MessageLane() = default;
  MessageLane(MessageLane const&) = delete;
  MessageLane& operator=(MessageLane const&) = delete;
  virtual ~MessageLane() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  [[nodiscard]] virtual std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) = 0;
  [[nodiscard]] virtual std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) = 0;
};

// Collective calls made of messages, as `Communicator` defines them. All ranks make them in the same order.

/// Along a tree: each rank waits for at most log2(ranks) messages, twice.
void all_reduce(MessageLane& lane, std::span<std::uint64_t> values, Reduce op);
/// Along a tree.
void broadcast(MessageLane& lane, std::span<std::byte> bytes, int root);
/// From `root` to each: nobody passes bytes on, so nobody need call this library for another to get them.
[[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(MessageLane& lane, std::span<std::byte> bytes, int root);
/// `world` is the communicator of the same ranks: it agrees whether the root has memory for all.
[[nodiscard]] std::vector<std::vector<std::byte>> gather(Communicator& world, MessageLane& lane,
                                                         std::span<std::byte const> bytes, int root);

// What other collective calls are made of where nothing faster is there.

/// The outcome of the lowest failing rank, by `all_reduce` and `broadcast` of `world`.
[[nodiscard]] Outcome agree_by_collectives(Communicator& world, Outcome const& mine);
/// Everyone's colour, by rank, by `all_reduce` of `world`.
/// @throws UsageError on every rank when one's is negative.
[[nodiscard]] std::vector<int> exchange_colors(Communicator& world, int color);
/// The ranks of one colour, in their order.
[[nodiscard]] std::vector<int> members_of(std::span<int const> colors, int color);

}  // namespace rankslice
