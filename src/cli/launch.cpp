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
  throw CommError(ExitCode::bad_launch,
                  fmt::format("{} says that this job has {} ranks, but {}: each process would do all the work alone. "
                              "Likely cause: the launcher speaks another PMI than this program's MPI library; start it "
                              "with the mpirun of that library, or with srun --mpi=pmix",
                              env.says, env.ranks, mpi ? "MPI sees only one" : "no MPI launcher started it"));
}

}  // namespace rankslice::cli
