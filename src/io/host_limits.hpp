#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace rankslice {

/// Why this process cannot have an io_uring; empty when it can. Local.
[[nodiscard]] std::string why_no_io_uring();

/// Which transparent huge pages the system gives: "always", "madvise", "never"; empty where it does not say. `root`
/// stands for "/", in this and the next one.
[[nodiscard]] std::string huge_pages(std::string const& root = "");

struct MemoryLimit {
  std::uint64_t bytes = 0;
  std::string by;  ///< "the memory of the host", or the cgroup's file
};

/// The lowest limit of what the processes of this one's cgroups may have together, version 1 or 2, or what the host
/// has. Nothing where none is to be found.
[[nodiscard]] std::optional<MemoryLimit> memory_limit(std::string const& root = "");

/// How many files this process may open at most: its hard limit.
[[nodiscard]] std::uint64_t open_files_limit();

}  // namespace rankslice
