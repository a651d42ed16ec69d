#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

#include "rankslice/error.hpp"

namespace rankslice {

/// NCCL, or CUDA under it, failed on this rank, maybe because of another: NCCL's own text, and what it means.
class NcclFailure : public std::runtime_error {
 public:
  NcclFailure(ExitCode exit_code, std::string const& text) : std::runtime_error(text), code(exit_code) {}

  ExitCode code;
};

/// @throws NcclFailure unless the call succeeded, or goes on in the background
void check_nccl(ncclResult_t result);
/// The same for CUDA's calls about the stream that NCCL works on.
void check_stream(cudaError_t error);

/// The calling thread's current GPU, until the end of the scope.
class OnGpu {
 public:
  explicit OnGpu(int device);
  ~OnGpu() { cudaSetDevice(before_); }
  OnGpu(OnGpu const&) = delete;
  OnGpu& operator=(OnGpu const&) = delete;

 private:
  int before_ = 0;
};

/// Whether `bytes` lie on a GPU. @throws UsageError when it is another one than `device`
[[nodiscard]] bool lies_on_gpu(std::span<std::byte const> bytes, int device);

/// One NCCL communicator that never blocks: what a call started goes on in the background until `settled`, and no other
/// call is made before. Once something has failed, no call is made but the abort.
class NcclComm {
 public:
  NcclComm() = default;
  ~NcclComm() { abort(); }
  NcclComm(NcclComm const&) = delete;
  NcclComm& operator=(NcclComm const&) = delete;

  [[nodiscard]] ncclComm_t get() const { return comm_; }
  /// On the current GPU. Collective, and so is `start_finalize`.
  void start_init(int size, ncclUniqueId const& id, int rank);
  void start_finalize();
  /// Whether nothing of a call goes on any more. @throws NcclFailure, also for what failed on the GPU or the network
  [[nodiscard]] bool settled();
  /// Frees what was finalised, without waiting for anybody.
  void destroy();
  /// Ends all that is under way. Does nothing the second time.
  void abort() noexcept;

 private:
  ncclComm_t comm_ = nullptr;
};

}  // namespace rankslice
