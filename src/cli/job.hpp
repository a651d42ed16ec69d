#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "rankslice/checkpoint.hpp"
#include "rankslice/communicator.hpp"
#include "rankslice/device.hpp"
#include "rankslice/mesh.hpp"
#include "rankslice/verify.hpp"

#include "cli/console.hpp"
#include "cli/launch.hpp"
#include "cli/options.hpp"
#include "cli/plain_collectives.hpp"
#include "cli/readings.hpp"
#include "facts/timeline.hpp"
#include "facts/trace.hpp"
#include "facts/words.hpp"
#include "io/staged_output.hpp"
#include "plan/plan.hpp"

namespace rankslice::cli {

/// One run of a command on this rank: its options, its ranks, what it says and what it reports.
class Job {
 public:
  Job(Options const& options, Communicator& world, Console& console, MpiFacts mpi);

  Options const& options;
  Communicator& world;
  Console& console;
  MpiFacts mpi;
  PlainCollectives* plain_mpi = nullptr;  ///< Of the same ranks; null without MPI.
  Json report;                            ///< Complete on rank 0 only.
  bool listed = false;                    ///< The command has printed its own data; stdout gets no report beside it.

  /// Decide how many threads each rank works with, and say it. Collective.
  void decide_threads();

  /// Progress, and stopping by SIGINT or SIGTERM, for the library's calls.
  [[nodiscard]] CallOptions call();
  [[nodiscard]] OpenOptions open_options() const;
  /// The same for another checkpoint than the input.
  [[nodiscard]] OpenOptions open_options_of_other() const;
  /// What `--include` and `--exclude` say.
  [[nodiscard]] KeySelection keys() const { return key_selection(options.include, options.exclude); }
  /// Open the input, and say what it is. Collective.
  [[nodiscard]] std::shared_ptr<Checkpoint const> open_input();
  /// The same, but for tensors that are not selected. Collective.
  [[nodiscard]] std::shared_ptr<Checkpoint const> open_selected();
  [[nodiscard]] std::shared_ptr<Checkpoint const> select(std::shared_ptr<Checkpoint const> const& checkpoint);

  /// Look for an output that is in the way before hours of reading, not after, and for what killed runs left beside it.
  /// An output that is, holds, or lies as an existing file in one of the inputs is refused even with `overwrite`. An
  /// empty path is no output. What is left of an output that `resumes` may be its own: the call that writes it tells.
  /// Collective. @throws IoError `cannot_create`
  void expect_free(std::string const& output, StagedOutput::Kind kind, bool overwrite, bool resumes = false);

  /// See that report, metrics and trace can be written before anything is done. Collective.
  /// @throws IoError `cannot_create`
  void prepare_records();
  /// Of the ranks that trace, see how far their clocks are apart. Collective.
  void start_trace();

  /// When this rank finished its last block of work.
  [[nodiscard]] std::chrono::steady_clock::time_point last_block() const { return last_block_; }

  /// Run one phase; its seconds go into the report, the slowest rank's. Collective. Returns them.
  double timed(std::string const& phase, std::function<void()> const& step);

  /// What each rank did, gathered into `rank` and summed up in `bytes`. Collective.
  void report_ranks(RankBytes const& bytes, double seconds_load, Device const* device = nullptr);
  void report_mesh(Mesh const& mesh);
  void report_checkpoint(Checkpoint const& checkpoint);
  /// What the patterns take of a model, and that headers are fresh where they are.
  void report_selection(Model const& model);
  void report_headers(HeaderOrigin headers);
  void report_verify(VerifyReport const& verified);
  /// The tensor bytes that this rank wrote, and what an earlier run had. Collective.
  void report_written(std::uint64_t bytes, std::optional<Resumed> const& resumed);

  /// What all ranks did when, for the trace. Collective.
  void gather_trace();
  /// Write and print the report, and write metrics and trace. Rank 0 does it.
  void finish();
  /// The same for a command that failed.
  void fail(Error const& error);

 private:
  void publish(ExitCode code);
  void publish_trace();
  void publish_metrics(std::optional<ExitCode> code = std::nullopt);
  void got_on();
  [[nodiscard]] RankTrace own_trace() const;

  int threads_ = 0;  ///< 0: not decided.
  Readings readings_;
  bool report_ready_ = false, metrics_ready_ = false, trace_ready_ = false;
  Timeline timeline_;
  RankClock clock_;
  std::vector<RankTrace> traces_;  ///< Of all ranks, once gathered; on rank 0.
  std::chrono::steady_clock::time_point metrics_written_{};
  std::chrono::system_clock::time_point began_ = std::chrono::system_clock::now(), got_on_ = began_;
  std::chrono::steady_clock::time_point last_block_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Whether two paths lead to one file, or would, links followed.
[[nodiscard]] bool same_place(std::string const& a, std::string const& b);

/// Write a file so that whoever reads it sees the old text or the new one. @throws IoError
void write_whole(std::string const& path, std::string const& text);

/// Catch SIGINT and SIGTERM from now on: calls stop at their next block and clean up.
void catch_signals();
/// As many open files as the system lets this user have: a folder of shards has one for each rank.
void allow_many_files();
/// What to exit with when one of them has come.
[[nodiscard]] std::optional<ExitCode> stop_code();

}  // namespace rankslice::cli
