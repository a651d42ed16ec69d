#pragma once

#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "facts/words.hpp"

namespace rankslice::cli {

/// One thing that `doctor` looked at.
struct Finding {
  std::string check;               ///< "mpi", "memory", …
  std::string text;                ///< What was found.
  std::string advice{};            ///< What to do; of a note or a problem.
  ExitCode code = ExitCode::done;  ///< Of a problem: what a job would end with.
  std::string compared{};          ///< What hosts should have alike; empty: `text`.

  /// "ok"; "note": works, with what `advice` says; "problem": a job would fail.
  [[nodiscard]] std::string status() const {
    return code != ExitCode::done ? "problem" : advice.empty() ? "ok" : "note";
  }
};

/// What one host has.
struct HostFindings {
  std::string host;
  std::vector<Finding> findings;
};

/// The lines of the first host, and below them what others find otherwise. Pure.
[[nodiscard]] std::string findings_text(std::vector<HostFindings> const& hosts);
/// All of all hosts, `rankslice.doctor/1`. Pure.
[[nodiscard]] Json findings_json(std::vector<HostFindings> const& hosts);

/// To another rank and back.
[[nodiscard]] Json pack(HostFindings const& host);
[[nodiscard]] HostFindings unpack_findings(Json const& packed);

// What this host or process has. Local.

[[nodiscard]] std::vector<Finding> find_host_limits();
/// Of a folder or file. `probe`: a file that was made there, or empty.
[[nodiscard]] std::vector<Finding> find_path(std::string const& path, std::string const& probe,
                                             std::string const& why_no_probe);

}  // namespace rankslice::cli
