#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "rankslice/communicator.hpp"

namespace rankslice::cli {

/// What the launcher's environment says of this process.
struct LaunchEnvironment {
  int rank = 0;          ///< Best guess; used only to print a message once.
  int ranks = 1;         ///< Of the job, as the launcher has it.
  bool has_mpi = false;  ///< An MPI launcher (mpirun, srun with PMI) started us.
  std::string says;      ///< "OMPI_COMM_WORLD_SIZE=4", where `ranks` is from.
};
[[nodiscard]] LaunchEnvironment launch_environment();

/// MPI, from its start to its end, and the communicator of all ranks. A process that no MPI launcher started is a job
/// of one rank and does not touch MPI.
class Launch {
 public:
  /// @throws CommError `bad_launch` when the launcher speaks of more ranks than MPI knows.
  Launch(std::string const& comm, std::chrono::milliseconds timeout);
  ~Launch();
  Launch(Launch const&) = delete;
  Launch& operator=(Launch const&) = delete;

  [[nodiscard]] Communicator& world() { return *world_; }
  /// End all ranks with `code`: for errors that the other ranks do not know of.
  [[noreturn]] void abort(ExitCode code);
  /// "Open MPI v4.1.4", or nothing without MPI.
  [[nodiscard]] std::string mpi_version() const;

 private:
  bool mpi_ = false;
  std::unique_ptr<Communicator> world_;
};

}  // namespace rankslice::cli
