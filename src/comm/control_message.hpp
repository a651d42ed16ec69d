#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// What ranks tell each other beside the data. Ranks speak to rank 0 only, and rank 0 to all.
enum class ControlKind : std::uint8_t {
  working,   ///< A rank gets on with a step.
  waiting,   ///< A rank waits in a collective call.
  watching,  ///< Rank 0 is alive and keeps watch.
  check_in,  ///< A rank's outcome of a step.
  verdict,   ///< The outcome that rank 0 found for all.
};

struct ControlMessage {
  ControlKind kind = ControlKind::working;
  std::uint64_t agreement = 0;  ///< Number of the agreement that a check-in or a verdict belongs to.
  Outcome outcome;              ///< Of a check-in or a verdict.
};

/// Signs of life are one byte; check-ins and verdicts carry their outcome. All ranks run the same build on the same
/// kind of machine, so numbers travel as they lie in memory.
[[nodiscard]] std::vector<std::byte> encode(ControlMessage const& message);
/// @throws CommError for bytes that `encode` does not make.
[[nodiscard]] ControlMessage decode(std::span<std::byte const> bytes);

}  // namespace rankslice
