#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace rankslice {

/// A group of processes that the kernel limits together.
struct Cgroup {
  std::string folder;
  bool first_version = false;  ///< Its files are called otherwise.
};

/// The groups of this process that a controller ("memory", "cpu") may limit, and those above them: each limits.
/// `root` stands for "/".
[[nodiscard]] std::vector<Cgroup> cgroups(std::string_view controller, std::string const& root = "");

/// Of a small file; empty where there is none.
[[nodiscard]] std::string first_line(std::string const& path);

}  // namespace rankslice
