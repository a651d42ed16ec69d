#pragma once

#include <optional>

#include "cli/job.hpp"
#include "file_sums.hpp"

namespace rankslice::cli {

/// The sums that `--sha256` asks for; nothing without it. Collective. @throws as `find_file_sums`
[[nodiscard]] std::optional<FileSums> find_asked_sums(Job& job);

/// Check them, and report it. Collective. @throws as `check_file_sums`; VerifyError for files that differ
void check_asked_sums(Job& job, FileSums const& sums);

}  // namespace rankslice::cli
