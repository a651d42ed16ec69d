#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace rankslice {

/// How much of all processors together the processes of a cgroup get.
struct CpuQuota {
  double processors = 0;
  std::string group;  ///< The folder of the group.
};

/// What the launcher and the system let a process run on.
struct Processors {
  std::vector<int> ids;  ///< Ascending.
  std::optional<CpuQuota> quota;
};

/// This process's own: by its affinity mask, and the tightest quota of its cgroups, version 1 or 2. `root` stands for
/// "/", in this and the next one.
[[nodiscard]] Processors own_processors(std::string const& root = "");

/// How many there are for this process and those that it was started with: of its cpuset, else of the host.
[[nodiscard]] std::size_t common_processors(std::string const& root = "");

/// How many numbers are in a list as the kernel writes it, "0-3,8,10-11".
[[nodiscard]] std::size_t count_in_list(std::string_view list);

/// How many threads each of the processes of a host may have that works on the same job: of each processor its share
/// among those who may run there, of a quota the same among those of the group; at least 1, at most 16. Pure.
[[nodiscard]] int fair_threads(std::vector<Processors> const& of_host, std::size_t process);

/// The same for a process that knows how many of its kind the host has, and not where they may run: `common`
/// processors are there for all of them. Pure.
[[nodiscard]] int fair_threads(Processors const& own, std::size_t common, int processes);

}  // namespace rankslice
