#include "io/cgroups.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

namespace rankslice {

std::string first_line(std::string const& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<Cgroup> cgroups(std::string_view controller, std::string const& root) {
  std::vector<Cgroup> found;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/user.slice", "5:memory:/job_7"
    auto const first = line.find(':');
    auto const second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    auto const controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    auto const first_version = controllers.find(fmt::format(",{},", controller)) != std::string::npos;
    if (!first_version && controllers != ",,") continue;
    auto const mount = std::filesystem::path(root + "/sys/fs/cgroup") / (first_version ? controller : "");
    for (std::filesystem::path group = line.substr(second + 1);; group = group.parent_path()) {
      found.push_back({.folder = (mount / group.relative_path()).string(), .first_version = first_version});
      if (group == group.parent_path()) break;
    }
  }
  return found;
}

}  // namespace rankslice
