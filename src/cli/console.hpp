#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "rankslice/options.hpp"

#include "cli/options.hpp"

namespace rankslice::cli {

/// Data on stdout, which a script waits for. @throws IoError `io` when it cannot be written.
void print_data(std::string const& text);

/// Lines for people on stderr, from one rank of the job, as text or JSON.
class Console {
 public:
  Console() = default;
  /// `speaks`: whether this rank is the one that talks.
  Console(Options const& options, bool speaks);

  void say(std::string const& line);
  void detail(std::string const& line);  ///< With -v only.
  void warn(std::string const& line);
  void error(std::string const& line);  ///< Also with -q.

  /// A bar on a terminal, else a line every few seconds.
  void progress(Progress const& progress);

 private:
  void print(std::string_view level, std::string const& line);
  void clear_bar();

  bool speaks_ = true, quiet_ = false, json_ = false, bar_ = false, progress_ = false, bar_shown_ = false;
  int verbose_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace rankslice::cli
