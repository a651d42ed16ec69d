#pragma once

#include <string>

namespace rankslice::cli {

/// What the launcher's environment says of this process.
struct LaunchEnvironment {
  int rank = 0;          ///< Best guess; used only to print a message once.
  int ranks = 1;         ///< Of the job, as the launcher has it.
  bool has_mpi = false;  ///< An MPI launcher (mpirun, srun with PMI) started us.
  std::string says;      ///< "OMPI_COMM_WORLD_SIZE=4", where `ranks` is from.
};
[[nodiscard]] LaunchEnvironment launch_environment();

/// Refuse to be one of several one-rank jobs that believe they are ranks of one. `mpi`: whether MPI was started.
/// @throws CommError `bad_launch`, with the likely cause.
void require_one_job(LaunchEnvironment const& env, int world_size, bool mpi);

/// Refuse to load alone as `rank` when a launcher started several processes and this is another one of them: they would
/// all load as that rank. @throws CommError `bad_launch`, with the likely cause.
void require_own_rank(LaunchEnvironment const& env, int rank);
/// Whether this process says so, of all those that are refused.
[[nodiscard]] bool speaks_for_wrong_ranks(LaunchEnvironment const& env, int rank);

}  // namespace rankslice::cli
