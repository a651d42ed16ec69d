#include "comm/nccl_calls.hpp"

#include <fmt/format.h>

#include <chrono>
#include <future>
#include <thread>
#include <utility>

namespace rankslice {
namespace {

constexpr std::chrono::seconds kAbortBound{5};

/// A rank that died, or a network that does not carry, looks like this from another rank.
bool is_of_another_rank(ncclResult_t result, NcclPhase phase) {
  return result == ncclRemoteError || (result == ncclSystemError && phase == NcclPhase::working);
}

/// In one group, so that NCCL tells all of them before it waits for any.
void abort_together(std::vector<ncclComm_t> const& comms) {
  ncclGroupStart();
  for (auto* const comm : comms) ncclCommAbort(comm);
  ncclGroupEnd();
}

}  // namespace

void check_nccl(ncclResult_t result, NcclPhase phase) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  std::string const details = ncclGetLastError(nullptr);
  throw NcclFailure(is_of_another_rank(result, phase) ? ExitCode::timeout : ExitCode::unavailable,
                    fmt::format("NCCL: {}{}{}", ncclGetErrorString(result), details.empty() ? "" : ": ", details));
}

void check_stream(cudaError_t error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // errors of calls stay until they are asked for
  throw NcclFailure(ExitCode::unavailable, fmt::format("CUDA: {}", cudaGetErrorString(error)));
}

bool lies_on_gpu(std::span<std::byte const> bytes, int device) {
  cudaPointerAttributes attributes{};
  check_stream(cudaPointerGetAttributes(&attributes, bytes.data()));  // memory that CUDA does not know is no error
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device) {
    throw UsageError(fmt::format("memory of GPU {} was given to a communicator of GPU {}", attributes.device, device));
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

void NcclComm::start_init(int size, ncclUniqueId const& id, int rank) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  check_nccl(ncclCommInitRankConfig(&comm_, size, id, rank, &config), phase_);
}

void NcclComm::start_finalize() { check_nccl(ncclCommFinalize(comm_)); }

bool NcclComm::settled() {
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(comm_, &state), phase_);
  check_nccl(state, phase_);
  if (state != ncclSuccess) return false;
  phase_ = NcclPhase::working;
  return true;
}

void NcclComm::destroy() { check_nccl(ncclCommDestroy(std::exchange(comm_, nullptr))); }

bool abort_all(std::vector<ncclComm_t> comms) noexcept {
  std::erase(comms, nullptr);
  if (comms.empty()) return true;
  try {
    std::packaged_task<void()> task([comms = std::move(comms)] { abort_together(comms); });
    auto const ended = task.get_future();  // of a task, it does not wait at its end
    std::thread(std::move(task)).detach();
    return ended.wait_for(kAbortBound) == std::future_status::ready;
  } catch (...) {  // no thread: they stay as they are
    return false;
  }
}

}  // namespace rankslice
