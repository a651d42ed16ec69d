#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "rankslice/device.hpp"

namespace rankslice {

/// What CUDA offers to this process.
struct VisibleGpus {
  int count = 0;
  std::string why_none;  ///< With advice; empty when there are some.
};

/// Also where there is no driver: a program that is linked with `rankslice::cuda` starts anywhere. Local.
[[nodiscard]] VisibleGpus visible_gpus();

/// A GPU by its index among the visible ones. Its primary context is shared with whatever else in the process uses it,
/// LibTorch for example. No wait for it lasts longer than `timeout`: then DeviceError names it. The thread's current
/// GPU stays what it was, unless it was one that the process does not use. Local. @throws DeviceError
[[nodiscard]] std::shared_ptr<Device> open_gpu(int index, std::chrono::milliseconds timeout = std::chrono::minutes(10));

}  // namespace rankslice
