#pragma once

#include <cuda_runtime_api.h>

namespace rankslice {

/// The calling thread's current GPU, until the end of the scope. The one before comes back only where this process uses
/// it: CUDA makes a context, of hundreds of MiB, on whatever GPU becomes current, and a thread that has chosen none
/// counts as on GPU 0.
class CurrentGpu {
 public:
  explicit CurrentGpu(int device);
  ~CurrentGpu();
  CurrentGpu(CurrentGpu const&) = delete;
  CurrentGpu& operator=(CurrentGpu const&) = delete;

  /// Why `device` is not current, or none.
  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  static constexpr int kNone = -1;
  int before_ = kNone;  ///< What to bring back.
  cudaError_t error_ = cudaSuccess;
};

}  // namespace rankslice
