#include "cli/launch.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "rankslice/error.hpp"

namespace rankslice::cli {

namespace {

std::optional<int> number(char const* variable) {
  auto const* const text = std::getenv(variable);
  int value = 0;
  if (text == nullptr || std::from_chars(text, text + std::strlen(text), value).ec != std::errc{}) return std::nullopt;
  return value;
}

/// By the variable that speaks of more ranks.
std::string_view likely_cause(LaunchEnvironment const& env) {
  if (env.says.starts_with("WORLD_SIZE")) {
    return "Likely cause: torchrun starts no MPI job; start it with mpirun or srun, or load with --rank $RANK --ranks "
           "$WORLD_SIZE in each process";
  }
  if (env.says.starts_with("SLURM")) {
    return "Likely cause: srun speaks another PMI than this program's MPI library; use srun --mpi=pmix (srun "
           "--mpi=list says what there is), or mpirun";
  }
  return "Likely cause: the launcher is of another MPI library than this program; start it with the mpirun of its own";
}

}  // namespace

LaunchEnvironment launch_environment() {
  LaunchEnvironment env;
  for (auto const* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE"}) {
    if (auto const size = number(variable); size && *size > env.ranks) {
      env.ranks = *size;
      env.says = fmt::format("{}={}", variable, *size);
    }
  }
  for (auto const* variable : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", "RANK"}) {
    if (auto const rank = number(variable)) {
      env.rank = *rank;
      break;
    }
  }
  for (auto const* variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"}) {
    env.has_mpi = env.has_mpi || std::getenv(variable) != nullptr;
  }
  return env;
}

void require_one_job(LaunchEnvironment const& env, int world_size, bool mpi) {
  if (world_size > 1 || env.ranks == 1) return;
  throw CommError(
      ExitCode::bad_launch,
      fmt::format("{} says that this job has {} ranks, but {}: each process would do all the work alone. {}", env.says,
                  env.ranks, mpi ? "MPI sees only one" : "no MPI launcher started it", likely_cause(env)));
}

bool speaks_for_wrong_ranks(LaunchEnvironment const& env, int rank) { return env.rank == (rank == 0 ? 1 : 0); }

void require_own_rank(LaunchEnvironment const& env, int rank) {
  if (env.ranks == 1 || env.rank == rank) return;
  throw CommError(ExitCode::bad_launch,
                  fmt::format("{} says that this job has {} processes, and number {} was started with --rank {}: "
                              "several would do the work of one rank. Likely cause: --rank is for one process that "
                              "loads alone; leave it out under mpirun or srun, or give each process its own",
                              env.says, env.ranks, env.rank, rank));
}

}  // namespace rankslice::cli
