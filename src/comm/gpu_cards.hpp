#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// What a rank tells the others about itself before NCCL starts.
struct GpuCard {
  std::string host;
  std::string gpu;                  ///< The UUID of its GPU; empty where it has none.
  std::string why_none;             ///< Why it has none.
  int visible_gpus = 0;             ///< On its host, to it.
  int nccl_version = 0;             ///< As NCCL codes it, of the library that it found: 23007 is 2.30.7.
  int built_with = 0;               ///< The same, of the headers that it was built with.
  std::uint64_t staging_bytes = 0;  ///< Ranks cut their messages by it.
  bool shares_gpu = false;          ///< NCCL was told that ranks may share a GPU.
};

/// Why these ranks cannot use NCCL together.
struct NcclRefusal {
  int rank = 0;  ///< The lowest rank that stands in the way.
  std::string message;
};

/// `cards` by rank, at least one. Nothing where NCCL may start.
[[nodiscard]] std::optional<NcclRefusal> refuse_nccl(std::span<GpuCard const> cards);

/// Every rank's card, by rank. Collective.
[[nodiscard]] std::vector<GpuCard> exchange_cards(Communicator& base, GpuCard const& mine);

}  // namespace rankslice
