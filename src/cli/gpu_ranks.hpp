#pragma once

#include <memory>

#include "rankslice/communicator.hpp"

#include "cli/options.hpp"

namespace rankslice::cli {

/// What `--comm` makes of the ranks: NCCL's communicator over `base`, or null where `base` itself serves. `auto` takes
/// NCCL where tensors go to GPUs and each rank has one of its own. Collective.
/// @throws DeviceError on every rank, with advice, when NCCL was asked for and cannot be had.
[[nodiscard]] std::unique_ptr<Communicator> connect_gpus(Options const& options, Communicator& base);

}  // namespace rankslice::cli
