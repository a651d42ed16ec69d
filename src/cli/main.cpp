#include <fmt/format.h>
#include <mpi.h>

#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>

#include "rankslice/error.hpp"
#include "rankslice/mpi.hpp"
#include "rankslice/store.hpp"

#include "cli/commands.hpp"
#include "cli/launch.hpp"

namespace rankslice::cli {

namespace {

/// MPI from its start to its end, and the communicator of all ranks. A process that no MPI launcher started is a job of
/// one rank and does not touch MPI.
class Ranks {
 public:
  /// @throws CommError `bad_launch` when the launcher speaks of more ranks than MPI knows.
  explicit Ranks(Options const& options) {
    auto const env = launch_environment();
    if (env.has_mpi || options.comm == "mpi") {
      mpi_ = std::make_unique<Mpi>();
      world_ = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = options.timeout()});
    } else {
      world_ = make_solo_communicator();
    }
    require_one_job(env, world_->size(), mpi_ != nullptr);
  }

  [[nodiscard]] Communicator& world() { return *world_; }

  /// End all ranks: for errors that the others do not know of.
  [[noreturn]] void abort(ExitCode code) {
    if (mpi_) MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    std::_Exit(static_cast<int>(code));
  }

  /// "Open MPI v4.1.4", or nothing without MPI.
  [[nodiscard]] std::string mpi_version() const {
    if (!mpi_) return {};
    std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
    int length = 0;
    MPI_Get_library_version(text.data(), &length);
    std::string const version(text.data(), static_cast<std::size_t>(length));
    return version.substr(0, version.find(','));
  }

 private:
  struct Mpi {
    Mpi() {
      int provided = 0;
      MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    }
    ~Mpi() { MPI_Finalize(); }
    Mpi(Mpi const&) = delete;
    Mpi& operator=(Mpi const&) = delete;
  };

  std::unique_ptr<Mpi> mpi_;  // outlives the communicator
  std::unique_ptr<Communicator> world_;
};

using Command = void (*)(Job&);

Command find_command(std::string const& name) {
  static std::map<std::string, Command> const commands{{"inspect", inspect}, {"plan", plan},     {"synth", synth},
                                                       {"load", load},       {"verify", verify}, {"to-hf", to_hf}};
  return commands.at(name);
}

/// Commands that ranks share. The others do their work in one process, whoever starts it.
bool uses_ranks(Options const& options) {
  return options.command == "verify" || options.command == "to-hf" || (options.command == "load" && !options.rank);
}

/// Tell and report an error. One that the ranks agreed on is told by rank 0, any other by the rank that has it.
void tell(Job& job, Error const& error, bool agreed) {
  if (!agreed || job.world.rank() == 0) {
    auto const rank = agreed ? error.rank : job.world.rank();
    job.console.error(job.world.size() > 1 ? fmt::format("rank {}: {}", rank, error.what()) : error.what());
  }
  try {
    job.fail(error);
  } catch (Error const& unreported) {
    job.console.error(unreported.what());
  }
}

/// Run the command, and report how it ended. Returns the exit code. `ranks` is null for a command that does not use
/// them.
int run(Options const& options, Communicator& world, Ranks* ranks) {
  Job job(options, world, ranks != nullptr ? ranks->mpi_version() : "");
  try {
    find_command(options.command)(job);
    on_every_rank(world, [&] { job.finish(); });
    return static_cast<int>(ExitCode::done);
  } catch (Error const& error) {
    auto const agreed = error.rank >= 0 || world.size() == 1;
    tell(job, error, agreed);
    if (!agreed && ranks != nullptr) ranks->abort(error.code);
    return static_cast<int>(error.code);
  } catch (std::exception const& error) {
    UnexpectedError const unexpected(fmt::format("unexpected: {}", error.what()));
    tell(job, unexpected, world.size() == 1);
    if (world.size() > 1 && ranks != nullptr) ranks->abort(unexpected.code);
    return static_cast<int>(unexpected.code);
  }
}

int start(Options const& options) {
  catch_signals();
  allow_many_files();
  disable_hdf5_exit_handler();
  if (!uses_ranks(options)) {
    auto const world = make_solo_communicator();
    return run(options, *world, nullptr);
  }
  Ranks ranks(options);
  return run(options, ranks.world(), &ranks);
}

}  // namespace

}  // namespace rankslice::cli

int main(int argc, char** argv) {
  using namespace rankslice;
  // Until the ranks know each other they all fail alike, and the first one speaks for all.
  auto const speaks = cli::launch_environment().rank == 0;
  cli::Console console;
  try {
    auto const options = cli::parse_options(argc, argv);
    return options ? cli::start(*options) : 0;
  } catch (Error const& error) {
    if (speaks) console.error(error.what());
    return static_cast<int>(error.code);
  } catch (std::exception const& error) {
    console.error(fmt::format("unexpected: {}", error.what()));
    return static_cast<int>(ExitCode::unexpected);
  }
}
