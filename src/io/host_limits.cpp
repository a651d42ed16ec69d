#include "io/host_limits.hpp"

#include <linux/io_uring.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <sstream>
#include <string_view>

#include "io/cgroups.hpp"
#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

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
  for (auto const& group : cgroups("memory", root)) {
    auto const file =
        (std::filesystem::path(group.folder) / (group.first_version ? "memory.limit_in_bytes" : "memory.max")).string();
    lower(limit, first_line(file), file);
  }
  return limit;
}

std::uint64_t open_files_limit() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? static_cast<std::uint64_t>(limit.rlim_max) : 0;
}

}  // namespace rankslice
