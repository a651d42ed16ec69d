#include "comm/nccl_calls.hpp"

#include <fmt/format.h>

#include <utility>

namespace rankslice {
namespace {

/// A rank that died, or a network that does not carry, looks like this from another rank.
bool is_of_another_rank(ncclResult_t result) { return result == ncclRemoteError || result == ncclSystemError; }

}  // namespace

void check_nccl(ncclResult_t result) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  std::string const details = ncclGetLastError(nullptr);
  throw NcclFailure(is_of_another_rank(result) ? ExitCode::timeout : ExitCode::unavailable,
                    fmt::format("NCCL: {}{}{}", ncclGetErrorString(result), details.empty() ? "" : ": ", details));
}

void check_stream(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw NcclFailure(ExitCode::unavailable, fmt::format("CUDA: {}", cudaGetErrorString(error)));
}

OnGpu::OnGpu(int device) {
  check_stream(cudaGetDevice(&before_));
  check_stream(cudaSetDevice(device));
}

bool lies_on_gpu(std::span<std::byte const> bytes, int device) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, bytes.data()) != cudaSuccess) {
    cudaGetLastError();  // memory that CUDA does not know is no error
    return false;
  }
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device) {
    throw UsageError(fmt::format("memory of GPU {} was given to a communicator of GPU {}", attributes.device, device));
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

void NcclComm::start_init(int size, ncclUniqueId const& id, int rank) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  check_nccl(ncclCommInitRankConfig(&comm_, size, id, rank, &config));
}

void NcclComm::start_finalize() { check_nccl(ncclCommFinalize(comm_)); }

bool NcclComm::settled() {
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(comm_, &state));
  check_nccl(state);
  return state == ncclSuccess;
}

void NcclComm::destroy() { check_nccl(ncclCommDestroy(std::exchange(comm_, nullptr))); }

void NcclComm::abort() noexcept {
  if (comm_ != nullptr) ncclCommAbort(std::exchange(comm_, nullptr));
}

}  // namespace rankslice
