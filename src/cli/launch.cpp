#include "cli/launch.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "rankslice/mpi.hpp"

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

Launch::Launch(std::string const& comm, std::chrono::milliseconds timeout) {
  auto const env = launch_environment();
  if (env.has_mpi || comm == "mpi") {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    mpi_ = true;
    world_ = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = timeout});
  } else {
    world_ = make_solo_communicator();
  }
  if (world_->size() == 1 && env.ranks > 1) {
    world_.reset();
    if (mpi_) MPI_Finalize();
    throw CommError(ExitCode::bad_launch,
                    fmt::format("{} says that this job has {} ranks, but {}: each process would do all the work alone. "
                                "Likely cause: the launcher speaks another PMI than this program's MPI library; start "
                                "it with the mpirun of that library, or with srun --mpi=pmix",
                                env.says, env.ranks, mpi_ ? "MPI sees only one" : "no MPI launcher started it"));
  }
}

Launch::~Launch() {
  world_.reset();
  if (mpi_) MPI_Finalize();
}

void Launch::abort(ExitCode code) {
  if (mpi_) MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  std::_Exit(static_cast<int>(code));
}

std::string Launch::mpi_version() const {
  if (!mpi_) return {};
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  std::string const version(text.data(), static_cast<std::size_t>(length));
  return version.substr(0, version.find(','));
}

}  // namespace rankslice::cli
