#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "rankslice/communicator.hpp"

namespace rankslice {

struct NcclOptions {
  /// This rank's GPU, by its index among the visible ones.
  int device = 0;
  /// Pinned host memory through which bytes pass that do not lie on the GPU; the same on every rank. Messages travel in
  /// pieces of a quarter of it.
  std::size_t staging_bytes = std::size_t{64} << 20;
  /// Ranks may share a GPU, which NCCL allows from version 2.30 on when NCCL_MULTI_RANK_GPU_ENABLE=1 is set for it.
  bool shared_gpus = false;
  /// How long NCCL may take to start, here and at each split.
  std::chrono::milliseconds start_timeout = std::chrono::minutes(1);
};

/// A communicator whose reductions, broadcasts and transfers run on NCCL, on a CUDA stream of its own; all else goes
/// through `base`, which outlives it, has the same ranks, and gives the deadline. What lies on the GPU is ready when a
/// call is made with it, and may be used on any stream after `wait`.
///
/// NCCL carries out what was started in the order in which it was started: what was started before the same call of
/// `progress` or `wait` moves together, later things after it. Ranks that send to each other start both directions
/// before they call either; a transfer that is started on one rank before an agreement, or a collective call, is
/// started on the other before it too. That holds for all ranks together: there must be one order of everything that is
/// started in which each rank has its own share in its own order. A communicator and its splits each have a stream, and
/// a GPU need not run both at once: nothing may be under way on a split while other ranks wait for it on the whole.
///
/// Each split starts an NCCL communicator of its own, with as much pinned memory again (`staging_bytes`) and NCCL's own
/// buffers on the GPU, until it ends.
///
/// A rank without a GPU, a GPU of several ranks and different versions of NCCL are found before NCCL starts. After an
/// error of NCCL, or a missed deadline, the job is aborted (`Communicator::abort`), and every later call throws the
/// same error again. Collective over `base`, and so is the end of the result.
/// The thread's current GPU stays what it was, unless it was one that the process does not use.
/// @throws DeviceError with advice, the same on every rank, when NCCL cannot be used, or does not start.
[[nodiscard]] std::unique_ptr<Communicator> make_nccl_communicator(Communicator& base, NcclOptions const& options = {});

/// Why `make_nccl_communicator` would refuse, with advice; empty where it would not. The same on every rank.
/// Collective.
[[nodiscard]] std::string why_no_nccl(Communicator& base, NcclOptions const& options = {});

}  // namespace rankslice
