#include "device/cuda_current.hpp"

#include <cuda.h>

namespace rankslice {

namespace {

/// Whether the process uses this GPU. The driver alone knows, and tells without making a context.
bool is_used(int device) {
  constexpr auto kName = "cuDevicePrimaryCtxGetState";
  void* found = nullptr;
  auto status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 13000
  auto const error = cudaGetDriverEntryPointByVersion(kName, &found, 7000, cudaEnableDefault, &status);
#else
  auto const error = cudaGetDriverEntryPoint(kName, &found, cudaEnableDefault, &status);
#endif
  if (error != cudaSuccess || status != cudaDriverEntryPointSuccess) return false;
  unsigned int flags = 0;
  int active = 0;
  auto const get_state = reinterpret_cast<decltype(&cuDevicePrimaryCtxGetState)>(found);
  return get_state(device, &flags, &active) == CUDA_SUCCESS && active != 0;
}

}  // namespace

CurrentGpu::CurrentGpu(int device) {
  error_ = cudaGetDevice(&before_);
  if (error_ != cudaSuccess) return;
  if (before_ == device || !is_used(before_)) before_ = kNone;
  error_ = cudaSetDevice(device);
}

CurrentGpu::~CurrentGpu() {
  if (before_ != kNone) (void)cudaSetDevice(before_);
}

}  // namespace rankslice
