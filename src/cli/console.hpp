#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "rankslice/communicator.hpp"
#include "rankslice/options.hpp"

#include "cli/options.hpp"
#include "facts/words.hpp"

namespace rankslice::cli {

/// Data on stdout, which a script waits for. @throws IoError `io` when it cannot be written.
void print_data(std::string const& text);

/// Whether the command line or the environment asks for `--log-format json`, before they are parsed: what is wrong with
/// them is said in the form that they ask for.
[[nodiscard]] bool asks_for_json_log(int argc, char const* const* argv);

/// Lines for people on stderr, as text or JSON: the process has one. Local.
class Console {
 public:
  /// Of a process that its launcher calls `rank`; says everything, until it is told options.
  Console(bool json, int rank);
  void set_options(Options const& options);
  /// From now on only rank 0 of `world` talks; the others have errors to say.
  void join(Communicator const& world);
  /// What JSON lines name as the phase.
  void set_phase(std::string const& phase) { phase_ = phase; }

  void say(std::string const& line);
  void detail(std::string const& line);  ///< With -v only.
  void warn(std::string const& line);
  void error(std::string const& line);  ///< Also with -q.

  /// A bar on a terminal, else a line every few seconds.
  void progress(Progress const& progress);

  /// An error as `error` writes it, with its line's end. `known_now`: as in `LastWords`.
  [[nodiscard]] std::string error_line(std::string_view message, bool known_now) const;

 private:
  [[nodiscard]] Json describe(std::string_view level, std::string_view message, bool known_now) const;
  void print(std::string_view level, std::string const& line);
  void write_progress(std::string const& text, Progress const& progress);
  void clear_bar();

  bool json_;
  int rank_;
  std::string host_, phase_;
  bool speaks_ = true, quiet_ = false, bar_ = false, progress_ = false, bar_shown_ = false;
  int verbose_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace rankslice::cli
