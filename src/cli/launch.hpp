#pragma once

#include <string>
#include <vector>

namespace rankslice::cli {

/// What one launcher says of this process.
struct LaunchedJob {
  int rank = 0;
  int ranks = 1;
  std::string says;  ///< "OMPI_COMM_WORLD_SIZE=4"
};

/// What the launchers' environment says of this process: one may have started another.
struct LaunchEnvironment {
  LaunchedJob largest{};            ///< Whose `rank` tells who prints a message that all have.
  std::vector<LaunchedJob> jobs{};  ///< All of several ranks.
  bool has_mpi = false;             ///< An MPI launcher (mpirun, srun with PMI) started us.
};
[[nodiscard]] LaunchEnvironment launch_environment();

/// How many processes of one job launchers say that they started on this host; 1 when they do not say.
[[nodiscard]] int processes_of_host();

/// What this program knows of its MPI library; empty without MPI.
struct MpiFacts {
  std::string version;  ///< "Open MPI v4.1.4"
  std::string threads;  ///< "funneled", as MPI grants it; empty where it was not started.
};

/// Refuse to be one of several one-rank jobs that believe they are ranks of one. `mpi`: whether MPI was started.
/// @throws CommError `bad_launch`, with the likely cause.
void require_one_job(LaunchEnvironment const& env, int world_size, bool mpi);

/// Refuse to load alone as `rank` of `ranks` when launchers started several processes and this is another one of them:
/// they would all load as that rank. @throws CommError `bad_launch`, with the likely cause.
void require_own_rank(LaunchEnvironment const& env, int rank, int ranks);

}  // namespace rankslice::cli
