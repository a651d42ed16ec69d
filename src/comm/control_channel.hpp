#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "comm/backoff.hpp"

namespace rankslice {

/// A message that came from another rank.
struct ControlArrival {
  int from = 0;
  std::vector<std::byte> bytes;
};

/// Carries small messages between ranks, beside their data. No call waits.
class ControlChannel {
 public:
  ControlChannel() = default;
  ControlChannel(ControlChannel const&) = delete;
  ControlChannel& operator=(ControlChannel const&) = delete;
  virtual ~ControlChannel() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  /// Starts sending. Messages between two ranks arrive in the order in which they were sent.
  virtual void send(int to, std::vector<std::byte> message) = 0;
  /// Whether a message for `to` has not left this rank yet.
  [[nodiscard]] virtual bool sending(int to) = 0;
  /// The next message that has arrived whole.
  [[nodiscard]] virtual std::optional<ControlArrival> receive() = 0;
  /// Between two looks for messages: a moment, or less when something comes.
  virtual void pause(Backoff& backoff) { backoff.pause(); }
  /// Whether a rank has ended its side, so that nothing more comes from it than has come.
  [[nodiscard]] virtual bool has_left(int /*rank*/) const { return false; }
  /// Gives up for all ranks, as `Communicator::abort` does.
  [[noreturn]] virtual void abort(ExitCode code, std::string const& message) = 0;
};

}  // namespace rankslice
