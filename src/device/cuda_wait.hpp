#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <thread>

namespace rankslice {

/// Asks until the answer is another than cudaErrorNotReady, and returns it, or that at the end of the time: CUDA's own
/// waits have none. The pauses leave the core to ranks that read.
template <typename Query>
[[nodiscard]] cudaError_t wait_within(std::chrono::milliseconds timeout, Query const& query) {
  auto const end = std::chrono::steady_clock::now() + timeout;
  while (true) {
    auto const answer = query();
    if (answer != cudaErrorNotReady || std::chrono::steady_clock::now() > end) return answer;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

}  // namespace rankslice
