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
/// MPI_THREAD_FUNNELED, and only the calling thread uses the result. Collective over `comm`, and so is the end of the
/// result, which must come before MPI_Finalize. An MPI error or a missed deadline is printed and aborts the job, as
/// other ranks may wait for this one; a rank stuck in a step (`Communicator::begin_step`) beyond that ends itself.
/// @throws UsageError when the timeout is not positive, CommError when MPI is not initialised as it must be.
[[nodiscard]] std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm, MpiOptions const& options = {});

}  // namespace rankslice
