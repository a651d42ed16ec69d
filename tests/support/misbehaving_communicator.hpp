#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "support/forwarding_communicator.hpp"

namespace rankslice::test {

/// A call in which bytes travel, or ranks meet.
enum class CallKind : std::uint8_t { all_reduce, broadcast, gather, send, receive, split, agree };

struct TransitFault {
  enum class Effect : std::uint8_t {
    none,
    flip_given,  ///< One bit of what this rank sends, broadcasts or adds is another one; its own copy is right.
    flip_taken,  ///< One bit of what it receives is another one.
    lose_taken,  ///< What should arrive does not: its memory stays as it was, zeros for a gather.
    take_last,   ///< What came in the last such call comes again instead, as far as it goes.
    delay,       ///< This rank is late by `time`.
    fail,        ///< It throws instead of calling.
    vanish,      ///< It does not come: after `time` it throws.
  };
  Effect effect = Effect::none;
  CallKind call = CallKind::all_reduce;
  unsigned number = 0;    ///< Which of these calls of this rank, from 0, parts of the world included.
  std::uint64_t bit = 0;  ///< Modulo the bits that there are.
  std::chrono::milliseconds time{};
};

/// Another communicator, which outlives it, with one fault on its way. Empty messages stay empty.
class MisbehavingCommunicator final : public ForwardingCommunicator {
 public:
  MisbehavingCommunicator(Communicator& inner, TransitFault const& fault);

  /// How often this rank made such calls.
  [[nodiscard]] unsigned calls(CallKind call) const;
  /// Whether the fault's call came.
  [[nodiscard]] bool struck() const;

  void all_reduce(std::span<std::uint64_t> values, Reduce op) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override;
  /// Parts misbehave too, and their calls count.
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override;
  [[nodiscard]] Outcome agree(Outcome const& mine) override;

  struct State;

 private:
  MisbehavingCommunicator(std::unique_ptr<Communicator> part, std::shared_ptr<State> state);

  std::unique_ptr<Communicator> part_;
  std::shared_ptr<State> state_;
};

}  // namespace rankslice::test
