#pragma once

#include <mpi.h>

#include <chrono>
#include <memory>

#include "rankslice/communicator.hpp"

namespace rankslice {

struct MpiOptions {
  /// How long a rank may go without progress before the others give up (exit code 75).
  std::chrono::milliseconds timeout = std::chrono::seconds(300);
};

/// A communicator over a duplicate of `comm`, which stays the caller's. MPI must be initialised with at least
/// MPI_THREAD_FUNNELED, and only the calling thread uses the result. Collective over `comm`.
/// @throws CommError when MPI reports an error.
[[nodiscard]] std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm, MpiOptions const& options = {});

}  // namespace rankslice
