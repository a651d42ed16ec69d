#include <fmt/format.h>

#include <map>
#include <optional>

#include "rankslice/error.hpp"

#include "cli/commands.hpp"
#include "cli/launch.hpp"

namespace rankslice::cli {

namespace {

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

int exit_code(Error const& error) {
  if (error.code == ExitCode::interrupted && caught_signal() != 0) return 128 + caught_signal();
  return static_cast<int>(error.code);
}

/// Run the command, and report how it ended. Returns the exit code.
int run(Options const& options, Communicator& world, Launch* launch) {
  Job job(options, world, launch != nullptr ? launch->mpi_version() : "");
  try {
    find_command(options.command)(job);
    on_every_rank(world, [&] { job.finish(); });
    return static_cast<int>(ExitCode::done);
  } catch (Error const& error) {
    // Agreed errors are known to all ranks; rank 0 tells them once. Any other is this rank's alone.
    auto const agreed = error.rank >= 0 || world.size() == 1;
    if (!agreed || world.rank() == 0) {
      job.console.error(world.size() > 1 ? fmt::format("rank {}: {}", agreed ? error.rank : world.rank(), error.what())
                                         : error.what());
    }
    try {
      job.fail(error);
    } catch (Error const& unreported) {
      job.console.error(unreported.what());
    }
    if (!agreed && launch != nullptr) launch->abort(error.code);
    return exit_code(error);
  }
}

int start(Options const& options) {
  catch_signals();
  if (!uses_ranks(options)) {
    auto const world = make_solo_communicator();
    return run(options, *world, nullptr);
  }
  Launch launch(options.comm, options.timeout());
  return run(options, launch.world(), &launch);
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
