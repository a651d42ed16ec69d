#pragma once

// A stand-in for NCCL and the CUDA runtime. It is neither: no byte of it is NVIDIA's, and nothing that passes with it
// has run on a GPU. It defines the few functions of both libraries that src/comm/nccl_* calls, with the semantics that
// NCCL's documentation gives them, so that the control flow of our communicator (slow starts, errors that come later,
// ranks that are gone, aborts) can be tested where there is no GPU. Programs link it instead of libnccl and libcudart.
//
// Ranks are threads of one process. "GPU" memory is host memory that remembers
// where it would be. Streams are queues; what lies at their heads is carried out whenever anybody asks for anything.
// Whatever the documentation forbids, or would wait without bound, is noted as misuse.

#include <cuda_runtime.h>
#include <nccl.h>

#include <map>
#include <set>
#include <string>
#include <vector>

namespace rankslice::test {

/// What one rank meets. Operations are counted from 0, over all its communicators.
struct StandInRank {
  std::vector<int> gpus = {0};           ///< The visible ones, by numbers that make their UUIDs; devices are indices.
  int driver = CUDART_VERSION;           ///< 0: none.
  int nccl_version = NCCL_VERSION_CODE;  ///< Of the library that was found.
  int init_polls = 0;                    ///< How often it is asked before initialisation has ended.
  bool init_never_ends = false;
  ncclResult_t init_error = ncclSuccess;     ///< What initialisation ends with.
  int fails_at = -1;                         ///< The operation that ends with `failure`.
  ncclResult_t failure = ncclInternalError;  ///< Found by ncclCommGetAsyncError.
  int lost_from = -1;                        ///< From this operation on none arrives: the other side is gone.
  bool abort_never_returns = false;          ///< ncclCommAbort waits for a GPU that is stuck.
  cudaError_t pointer_error = cudaSuccess;   ///< What questions after memory end with.
};

/// What has happened, over all ranks.
struct StandInCounts {
  std::map<int, int> aborts;  ///< Of communicators, by their rank.
  int destroyed = 0;
  int operations = 0;
  int largest_group = 0;  ///< Calls.
};

/// The calling thread is such a rank from now on.
void be_stand_in_rank(StandInRank const& rank);

/// Begins anew: no communicators, no memory, no misuse.
void reset_stand_in();
[[nodiscard]] StandInCounts stand_in_counts();
/// The GPUs that this thread's rank has a context on, by index.
[[nodiscard]] std::set<int> stand_in_contexts();
/// What was done that must not be done, and what was not given back.
[[nodiscard]] std::vector<std::string> stand_in_misuse();

}  // namespace rankslice::test
