#pragma once

#include <memory>
#include <string>

#include "rankslice/communicator.hpp"

#include "cli/options.hpp"

namespace rankslice::cli {

struct GpuRanks {
  std::unique_ptr<Communicator> world;  ///< NCCL's, over `base`; null where `base` itself serves.
  std::string why_not;                  ///< Why `auto` does without, where it would take NCCL.
  bool failed = false;                  ///< NCCL should have served, and did not start.
};

/// What `--comm` makes of the ranks. `auto` takes NCCL where tensors go to GPUs, each rank has one of its own, and NCCL
/// starts. Collective.
/// @throws DeviceError on every rank, with advice, when NCCL was asked for and cannot be had.
[[nodiscard]] GpuRanks connect_gpus(Options const& options, Communicator& base);

/// Why NCCL cannot serve these ranks, with advice; empty when it can. Collective.
[[nodiscard]] std::string why_not_nccl(Communicator& base);

}  // namespace rankslice::cli
