#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.hpp"

namespace rankslice::cli {

/// A program that we started, talk to in lines, and end. It knows nothing of the MPI job that we belong to. Local.
class PythonProcess {
 public:
  /// `errors`: the file that gets what it writes to stderr. `patience`: for each of its lines.
  /// @throws IoError `input_missing` when it cannot be started
  PythonProcess(std::string const& python, std::vector<std::string> arguments, std::string errors,
                std::chrono::milliseconds patience);
  ~PythonProcess() { end(); }
  PythonProcess(PythonProcess const&) = delete;
  PythonProcess& operator=(PythonProcess const&) = delete;

  /// Ends it, and what it has started itself.
  void end();

  void tell(std::string_view line);
  /// The next line that it prints; `alive` is called while it is waited for, and may throw.
  /// @throws IoError with the last line of its errors when there is none, or none in time
  [[nodiscard]] std::string line(std::function<void()> const& alive);

 private:
  [[nodiscard]] std::string last_error() const;

  std::string python_, errors_, unread_;
  std::chrono::milliseconds patience_;
  UniqueFd talk_;
  ::pid_t pid_ = -1;
};

}  // namespace rankslice::cli
