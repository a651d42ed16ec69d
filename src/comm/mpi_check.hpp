#pragma once

#include <mpi.h>

#include <source_location>
#include <string_view>

#include "rankslice/error.hpp"

#include "core/unique_handle.hpp"

namespace rankslice {

/// Freed unless MPI is finalised already. Freeing is collective.
struct MpiCommTraits {
  using Handle = MPI_Comm;
  static Handle null() noexcept { return MPI_COMM_NULL; }
  static void close(Handle comm) noexcept;
};
using UniqueMpiComm = UniqueHandle<MpiCommTraits>;

/// Prints the message, as `last_words` has it, and ends the whole job with `code`.
[[noreturn]] void abort_job(MPI_Comm comm, ExitCode code, std::string_view message);

/// Aborts the job unless `rc` is MPI_SUCCESS: after an MPI error nothing is certain about the communicator, and other
/// ranks may wait for this one. With `ExitCode::timeout`, as such errors mean that another rank cannot be reached.
void check_mpi(int rc, MPI_Comm comm, std::source_location at = std::source_location::current());

}  // namespace rankslice
