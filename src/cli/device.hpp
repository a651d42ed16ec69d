#pragma once

#include <memory>

#include "rankslice/cuda.hpp"
#include "rankslice/device.hpp"

#include "cli/job.hpp"

namespace rankslice::cli {

/// What CUDA offers to this process, also in a program without it. Local.
[[nodiscard]] VisibleGpus find_gpus();

/// What `--device` gives this rank: the GPU that its place on its host makes its own, or null for host memory. `auto`
/// takes GPUs where every rank has one. Says and reports which it is. Collective.
/// @throws DeviceError on every rank when `cuda` was asked for and one of them has none.
[[nodiscard]] std::shared_ptr<Device> choose_device(Job& job);

}  // namespace rankslice::cli
