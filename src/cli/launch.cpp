#include "cli/launch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>

#include "rankslice/error.hpp"

namespace rankslice::cli {

namespace {

std::optional<int> parse_number(std::string_view text) {
  int value = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc{}) return std::nullopt;
  return value;
}

std::optional<int> number(char const* variable) {
  auto const* const text = std::getenv(variable);
  return text == nullptr ? std::nullopt : parse_number(text);
}

/// Of a list, "4(x2),3", in which 4 stands twice; at least 1.
int largest_number(char const* variable) {
  auto const* const text = std::getenv(variable);
  std::istringstream list(text == nullptr ? "" : text);
  auto largest = 1;
  for (std::string entry; std::getline(list, entry, ',');) {
    largest = std::max(largest, parse_number(entry).value_or(1));
  }
  return largest;
}

/// By the variable that speaks of more ranks.
std::string_view likely_cause(std::string_view says) {
  if (says.starts_with("WORLD_SIZE")) {
    return "Likely cause: torchrun starts no MPI job; start it with mpirun or srun, or load with --rank $RANK --ranks "
           "$WORLD_SIZE in each process";
  }
  if (says.starts_with("SLURM")) {
    return "Likely cause: srun speaks another PMI than this program's MPI library; use srun --mpi=pmix (srun "
           "--mpi=list says what there is), or mpirun";
  }
  return "Likely cause: the launcher is of another MPI library than this program; start it with the mpirun of its own";
}

/// The variables in which a launcher says how many processes there are, and which one this is.
struct LaunchVariables {
  char const* ranks;
  char const* rank;
};
constexpr std::array kLaunchVariables{
    LaunchVariables{"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"}, LaunchVariables{"PMI_SIZE", "PMI_RANK"},
    LaunchVariables{"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}, LaunchVariables{"WORLD_SIZE", "RANK"}};

}  // namespace

LaunchEnvironment launch_environment() {
  LaunchEnvironment env;
  env.largest.rank = number("PMIX_RANK").value_or(0);  // PMIx has no variable for how many there are
  for (auto const& variables : kLaunchVariables) {
    auto const ranks = number(variables.ranks).value_or(1);
    if (ranks <= 1) continue;
    env.jobs.push_back({.rank = number(variables.rank).value_or(0),
                        .ranks = ranks,
                        .says = fmt::format("{}={}", variables.ranks, ranks)});
    if (ranks > env.largest.ranks) env.largest = env.jobs.back();
  }
  for (auto const* variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"}) {
    env.has_mpi = env.has_mpi || std::getenv(variable) != nullptr;
  }
  return env;
}

int processes_of_host() {
  auto most = largest_number("SLURM_STEP_TASKS_PER_NODE");  // it does not say which host is this one
  for (auto const* variable : {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}) {
    most = std::max(most, number(variable).value_or(1));
  }
  return most;
}

void require_one_job(LaunchEnvironment const& env, int world_size, bool mpi) {
  auto const& job = env.largest;
  if (world_size > 1 || job.ranks == 1) return;
  throw CommError(
      ExitCode::bad_launch,
      fmt::format("{} says that this job has {} ranks, but {}: each process would do all the work alone. {}", job.says,
                  job.ranks, mpi ? "MPI sees only one" : "no MPI launcher started it", likely_cause(job.says)));
}

void require_own_rank(LaunchEnvironment const& env, int rank, int ranks) {
  auto const& job = env.largest;
  auto const is_meant = [&](LaunchedJob const& any) { return any.rank == rank && any.ranks == ranks; };
  if (job.ranks == 1 || job.rank == rank || std::ranges::any_of(env.jobs, is_meant)) return;
  throw CommError(ExitCode::bad_launch,
                  fmt::format("{} says that this job has {} processes, and number {} was started with --rank {}: "
                              "several would do the work of one rank. Likely cause: --rank is for one process that "
                              "loads alone; leave it out under mpirun or srun, or give each process its own",
                              job.says, job.ranks, job.rank, rank));
}

}  // namespace rankslice::cli
