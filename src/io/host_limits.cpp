#include "io/host_limits.hpp"

#include <fmt/format.h>
#include <linux/io_uring.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>

#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

std::string first_line(std::string const& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// Keep the lower one. Unlimited is "max" in version 2, and next to 2^63 in version 1.
void lower(std::optional<MemoryLimit>& limit, std::string_view text, std::string const& by) {
  std::uint64_t bytes = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  if (error != std::errc{} || bytes >= std::uint64_t{1} << 62) return;
  if (!limit || bytes < limit->bytes) limit = MemoryLimit{.bytes = bytes, .by = by};
}

void lower_by_host(std::optional<MemoryLimit>& limit, std::string const& root) {
  std::istringstream line(first_line(root + "/proc/meminfo"));
  std::string name;
  std::uint64_t kib = 0;
  if (line >> name >> kib && name == "MemTotal:") lower(limit, std::to_string(kib * 1024), "the memory of the host");
}

/// A group and those above it: each of them limits.
void lower_by_groups(std::optional<MemoryLimit>& limit, std::string const& mount, std::string const& group,
                     std::string const& file) {
  for (std::filesystem::path path = group;; path = path.parent_path()) {
    auto const name = (std::filesystem::path(mount) / path.relative_path() / file).string();
    lower(limit, first_line(name), name);
    if (path == path.parent_path()) return;
  }
}

}  // namespace

std::string why_no_io_uring() {
  ::io_uring_params params{};
  UniqueFd const ring(static_cast<int>(::syscall(__NR_io_uring_setup, 1, &params)));
  if (ring.valid()) return {};
  if (errno == ENOSYS) return "this kernel has none, or a filter of system calls hides it";
  if (errno == EPERM)
    return "it is forbidden here (kernel.io_uring_disabled, or the container's filter of system calls)";
  return reason(errno);
}

std::string huge_pages(std::string const& root) {
  auto const line = first_line(root + "/sys/kernel/mm/transparent_hugepage/enabled");
  auto const begin = line.find('[');
  auto const end = line.find(']');
  return begin == std::string::npos || end == std::string::npos ? "" : line.substr(begin + 1, end - begin - 1);
}

std::optional<MemoryLimit> memory_limit(std::string const& root) {
  std::optional<MemoryLimit> limit;
  lower_by_host(limit, root);
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/user.slice", "5:memory:/job_7"
    auto const first = line.find(':');
    auto const second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    auto const controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    auto const group = line.substr(second + 1);
    if (controllers == ",,") lower_by_groups(limit, root + "/sys/fs/cgroup", group, "memory.max");
    if (controllers.find(",memory,") != std::string::npos) {
      lower_by_groups(limit, root + "/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
    }
  }
  return limit;
}

std::uint64_t open_files_limit() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? static_cast<std::uint64_t>(limit.rlim_max) : 0;
}

}  // namespace rankslice
