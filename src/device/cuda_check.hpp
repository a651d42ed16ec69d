#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string_view>

#include "core/unique_handle.hpp"

namespace rankslice {

/// @throws DeviceError naming the device, unless `code` is cudaSuccess.
void check_cuda(cudaError_t code, std::string_view device, std::source_location at = std::source_location::current());

struct CudaStreamTraits {
  using Handle = cudaStream_t;
  static Handle null() noexcept { return nullptr; }
  static void close(Handle stream) noexcept { cudaStreamDestroy(stream); }
};
using UniqueCudaStream = UniqueHandle<CudaStreamTraits>;

struct CudaEventTraits {
  using Handle = cudaEvent_t;
  static Handle null() noexcept { return nullptr; }
  static void close(Handle event) noexcept { cudaEventDestroy(event); }
};
using UniqueCudaEvent = UniqueHandle<CudaEventTraits>;

/// Pinned host memory.
struct PinnedTraits {
  using Handle = void*;
  static Handle null() noexcept { return nullptr; }
  static void close(Handle memory) noexcept { cudaFreeHost(memory); }
};
using UniquePinned = UniqueHandle<PinnedTraits>;

}  // namespace rankslice
