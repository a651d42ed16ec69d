#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

/// NCCL, or CUDA under it, failed on this rank, maybe because of another: NCCL's own text, and what it means.
class NcclFailure : public std::runtime_error {
 public:
  NcclFailure(ExitCode exit_code, std::string const& text) : std::runtime_error(text), code(exit_code) {}

  ExitCode code;
};

/// Whether a communicator works already. Until then a system error is this rank's own: no file, no socket, no memory.
enum class NcclPhase { starting, working };

/// @throws NcclFailure unless the call succeeded, or goes on in the background
void check_nccl(ncclResult_t result, NcclPhase phase = NcclPhase::working);
/// The same for CUDA's calls about the stream that NCCL works on.
void check_stream(cudaError_t error);

/// Whether `bytes` lie on a GPU. @throws UsageError when it is another one than `device`; NcclFailure
[[nodiscard]] bool lies_on_gpu(std::span<std::byte const> bytes, int device);

/// One NCCL communicator that never blocks: what a call started goes on in the background until `settled`, and no other
/// call is made before. Once something has failed, no call is made but the abort.
class NcclComm {
 public:
  NcclComm() = default;
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
  /// What is left to be aborted; null where nothing is, and from now on.
  [[nodiscard]] ncclComm_t release() { return std::exchange(comm_, nullptr); }

 private:
  ncclComm_t comm_ = nullptr;
  NcclPhase phase_ = NcclPhase::starting;
};

/// Ends all that is under way on them, at once: NCCL's abort of one of them waits for kernels that another one keeps.
/// False when that took longer than a few seconds: then a thread is left with it, and what NCCL and the GPU were given
/// must not be freed, which would wait too.
[[nodiscard]] bool abort_all(std::vector<ncclComm_t> comms) noexcept;

}  // namespace rankslice
