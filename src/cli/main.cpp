#include <fmt/format.h>
#include <mpi.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string_view>
#include <thread>

#include "rankslice/error.hpp"
#include "rankslice/mpi.hpp"
#include "rankslice/store.hpp"

#include "cli/commands.hpp"
#include "cli/gpu_ranks.hpp"
#include "cli/launch.hpp"
#include "comm/last_words.hpp"

namespace rankslice::cli {

namespace {

/// Ends the process when MPI does not come up, or to its end, in time: a rank that is stopped there would keep all
/// others waiting.
class MpiDeadline {
 public:
  /// `does`: "start", for people.
  MpiDeadline(std::string_view does, std::chrono::milliseconds timeout, Console& console)
      : timer_([does, timeout, &console](std::stop_token const& done) {
          std::mutex mutex;
          std::unique_lock lock(mutex);
          std::condition_variable_any().wait_for(lock, done, timeout, [] { return false; });
          if (done.stop_requested()) return;
          console.error(fmt::format("MPI did not {} within {:.1f} s on this rank; is another rank stopped?", does,
                                    std::chrono::duration<double>(timeout).count()));
          std::_Exit(static_cast<int>(ExitCode::timeout));
        }) {}

 private:
  std::jthread timer_;  // told to stop, and joined, at the end of the scope
};

/// All ranks, as MPI itself has them.
class MpiCalls final : public PlainCollectives {
 public:
  void all_reduce_sum(std::span<std::uint64_t> values) override {
    MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
  }
  void broadcast(std::span<std::byte> bytes, int root) override {
    MPI_Bcast(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, root, MPI_COMM_WORLD);
  }
  void gather(std::span<std::byte const> bytes, std::span<std::byte> all, int root) override {
    auto const size = static_cast<int>(bytes.size());
    MPI_Gather(bytes.data(), size, MPI_BYTE, all.data(), size, MPI_BYTE, root, MPI_COMM_WORLD);
  }
  void pass_on(std::span<std::byte const> bytes, std::span<std::byte> received) override {
    int rank = 0, ranks = 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    auto const size = static_cast<int>(bytes.size());
    MPI_Sendrecv(bytes.data(), size, MPI_BYTE, (rank + 1) % ranks, 0, received.data(), size, MPI_BYTE,
                 (rank + ranks - 1) % ranks, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
};

/// MPI from its start to its end, and the communicator of all ranks. A process that no MPI launcher started is a job of
/// one rank and does not touch MPI.
class Ranks {
 public:
  /// @throws CommError `bad_launch` when the launcher speaks of more ranks than MPI knows; DeviceError when they are to
  /// use NCCL and cannot.
  Ranks(Options const& options, Console& console) {
    auto const env = launch_environment();
    if (env.has_mpi || options.comm == "mpi") {
      MpiDeadline const deadline("start", options.timeout(), console);
      mpi_ = std::make_unique<Mpi>(options.timeout(), console);
      world_ = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = options.timeout()});
    } else {
      world_ = make_solo_communicator();
    }
    if (options.command == "doctor") return;  // which tells what is wrong, with all the rest
    require_one_job(env, world_->size(), mpi_ != nullptr);
    gpus_ = connect_gpus(options, *world_);
  }

  [[nodiscard]] Communicator& world() { return gpus_.world ? *gpus_.world : *world_; }

  /// Into the report, and to people where NCCL failed.
  void tell_why_no_nccl(Job& job) const {
    if (gpus_.why_not.empty()) return;
    job.report["choices"]["why_not_nccl"] = gpus_.why_not;
    auto const line = fmt::format("comm     {}, without NCCL: {}", world_->kind(), gpus_.why_not);
    gpus_.failed ? job.console.warn(line) : job.console.detail(line);
  }

  /// End all ranks: for errors that the others do not know of.
  [[noreturn]] void abort(ExitCode code) {
    if (mpi_) MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    std::_Exit(static_cast<int>(code));
  }

  [[nodiscard]] bool has_mpi() const { return mpi_ != nullptr; }
  /// Null without MPI.
  [[nodiscard]] PlainCollectives* plain_mpi() { return mpi_ ? &mpi_calls_ : nullptr; }

  /// Also before MPI is started.
  [[nodiscard]] MpiFacts mpi_facts() const {
    return {.version = mpi_version(), .threads = mpi_ ? granted_threads() : ""};
  }

 private:
  /// "Open MPI v4.1.4", "MPICH 4.0.2"
  static std::string mpi_version() {
    std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
    int length = 0;
    MPI_Get_library_version(text.data(), &length);
    std::string const version(text.data(), static_cast<std::size_t>(length));
    // "Open MPI v4.1.4, package: …", or in lines "MPICH Version:  4.0.2", "MPICH Release date: …"
    auto const first = version.substr(0, version.find_first_of(",\n"));
    auto const name_end = first.find(" Version");
    if (name_end == std::string::npos) return first;
    return fmt::format("{} {}", first.substr(0, name_end), first.substr(first.find_last_of(" \t:") + 1));
  }

  struct Mpi {
    Mpi(std::chrono::milliseconds timeout, Console& console) : timeout_(timeout), console_(console) {
      int provided = 0;
      MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    }
    ~Mpi() {
      MpiDeadline const deadline("end", timeout_, console_);
      MPI_Finalize();
    }
    Mpi(Mpi const&) = delete;
    Mpi& operator=(Mpi const&) = delete;

   private:
    std::chrono::milliseconds timeout_;
    Console& console_;
  };

  static std::string granted_threads() {
    int granted = 0;
    MPI_Query_thread(&granted);
    if (granted == MPI_THREAD_SINGLE) return "single";
    if (granted == MPI_THREAD_FUNNELED) return "funneled";
    return granted == MPI_THREAD_SERIALIZED ? "serialized" : "multiple";
  }

  MpiCalls mpi_calls_;
  std::unique_ptr<Mpi> mpi_;  // outlives the communicator
  std::unique_ptr<Communicator> world_;
  GpuRanks gpus_;  ///< NCCL over `world_`, where it is used.
};

using Command = void (*)(Job&);

Command find_command(std::string const& name) {
  static std::map<std::string, Command> const commands{
      {"inspect", inspect}, {"plan", plan},   {"synth", synth},   {"load", load}, {"verify", verify},
      {"to-hf", to_hf},     {"bench", bench}, {"doctor", doctor}, {"man", man},   {"completion", completion}};
  return commands.at(name);
}

/// Commands that ranks share. The others do their work in one process, whoever starts it.
bool uses_ranks(Options const& options) {
  return options.command == "verify" || options.command == "to-hf" || options.command == "bench" ||
         options.command == "doctor" || (options.command == "load" && !options.rank);
}

bool moves_bytes(Options const& options) {
  return options.command == "load" || options.command == "verify" || options.command == "to-hf" ||
         options.command == "bench";
}

/// Tell and report an error. One that the ranks agreed on is told by rank 0, any other by the rank that has it.
void tell(Job& job, Error const& error, bool agreed) {
  if (!agreed || job.world.rank() == 0) {
    auto const rank = agreed ? error.rank : job.world.rank();
    job.console.error(job.world.size() > 1 ? fmt::format("rank {}: {}", rank, error.what()) : error.what());
  }
  try {
    if (agreed) job.gather_trace();
    job.fail(error);
  } catch (Error const& unreported) {
    job.console.error(unreported.what());
  }
}

/// Run the command, and report how it ended. Returns the exit code. `ranks` is null for a command that does not use
/// them.
int run(Options const& options, Communicator& world, Ranks* ranks, Console& console) {
  // Without MPI nobody but the doctor asks which one it would be.
  auto const names_mpi = ranks != nullptr && (ranks->has_mpi() || options.command == "doctor");
  Job job(options, world, console, names_mpi ? ranks->mpi_facts() : MpiFacts{});
  if (ranks != nullptr) job.plain_mpi = ranks->plain_mpi();
  try {
    job.prepare_records();
    if (ranks != nullptr) ranks->tell_why_no_nccl(job);
    on_every_rank(world, [&] { check_options(options); });
    require_same_options(options, world);
    if (moves_bytes(options)) job.decide_threads();
    job.start_trace();
    find_command(options.command)(job);
    job.gather_trace();
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

/// The ranks cannot work together; each process is on its own.
int fail_alone(Options const& options, Error const& error, bool speaks, Console& console) {
  auto const world = make_solo_communicator();
  Job job(options, *world, console, {});
  if (!speaks) return static_cast<int>(error.code);
  try {
    job.prepare_records();
  } catch (Error const& unreported) {
    job.console.error(unreported.what());
  }
  tell(job, error, true);
  return static_cast<int>(error.code);
}

int run_alone(Options const& options, Console& console) {
  try {
    if (options.command == "load" && options.ranks) {
      require_own_rank(launch_environment(), *options.rank, *options.ranks);
    }
  } catch (Error const& error) {
    return fail_alone(options, error, true, console);  // nobody knows which of the others fail
  }
  auto const world = make_solo_communicator();
  return run(options, *world, nullptr, console);
}

int start(Options const& options, Console& console) {
  catch_signals();
  allow_many_files();
  disable_hdf5_exit_handler();
  if (!uses_ranks(options)) return run_alone(options, console);
  std::optional<Ranks> ranks;
  try {
    ranks.emplace(options, console);
  } catch (Error const& error) {
    return fail_alone(options, error, launch_environment().largest.rank == 0, console);
  }
  // Of processes that should be one job and are not, one tells it; and a launcher might end them all with the first.
  if (options.command == "doctor" && ranks->world().size() == 1 && launch_environment().largest.rank != 0) return 0;
  return run(options, ranks->world(), &*ranks, console);
}

}  // namespace

}  // namespace rankslice::cli

int main(int argc, char** argv) {
  using namespace rankslice;
  // Until the ranks know each other they all fail alike, and the first one speaks for all.
  auto const rank = cli::launch_environment().largest.rank;
  auto const speaks = rank == 0;
  cli::Console console(cli::asks_for_json_log(argc, argv), rank);
  write_last_words_as([&](auto message, bool known_now) { return console.error_line(message, known_now); });
  try {
    auto const options = cli::parse_options(argc, argv);
    if (!options) return 0;
    console.set_options(*options);
    return cli::start(*options, console);
  } catch (Error const& error) {
    if (speaks) console.error(error.what());
    return static_cast<int>(error.code);
  } catch (std::exception const& error) {
    console.error(fmt::format("unexpected: {}", error.what()));
    return static_cast<int>(ExitCode::unexpected);
  }
}
