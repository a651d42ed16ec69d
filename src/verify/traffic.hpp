#pragma once

#include <cstdint>

#include "rankslice/options.hpp"
#include "rankslice/parameter.hpp"

namespace rankslice {

/// Bytes that each rank shares with others when a state that is held as its mesh says is verified and nothing differs:
/// 8 for each number. What does not grow with the model is not in it: agreements, fingerprints and empty lists of
/// differences, together less than 4 KiB. Nor does the number of calls grow.
struct VerifyTraffic {
  std::uint64_t summed = 0;  ///< Through all-reduces.
  std::uint64_t sent = 0;    ///< To one other rank, and as many from one.

  /// What a rank sends in all, if an all-reduce is the ring that large ones are: 2 (ranks - 1) / ranks of each byte.
  [[nodiscard]] std::uint64_t wire_bytes(int ranks) const;
};

/// Of a level for a model. Pure.
[[nodiscard]] VerifyTraffic verify_traffic(Model const& model, VerifyLevel level);

/// Whether loading converts anything, so that there are digests of converted values.
[[nodiscard]] bool converts(Model const& model);

}  // namespace rankslice
