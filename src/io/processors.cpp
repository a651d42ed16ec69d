#include "io/processors.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <new>
#include <numeric>
#include <sstream>
#include <vector>

#include "io/cgroups.hpp"

namespace rankslice {

namespace {

constexpr double kMostThreads = 16;       // more read no faster from any disk or cache we know
constexpr double kRoundingErrors = 1e-6;  // six sixths of a processor are one

int count_online() { return static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN))); }

/// For hosts with any number of processors: the call refuses a set that is too small. Where the system does not tell,
/// all that there are.
std::vector<int> affinity() {
  for (int most = 1024; most <= 1 << 20; most *= 2) {
    auto* const set = CPU_ALLOC(static_cast<std::size_t>(most));
    if (set == nullptr) throw std::bad_alloc();
    auto const size = CPU_ALLOC_SIZE(static_cast<std::size_t>(most));
    std::vector<int> ids;
    auto const known = ::sched_getaffinity(0, size, set) == 0;
    for (int id = 0; known && id < most; ++id) {
      if (CPU_ISSET_S(static_cast<std::size_t>(id), size, set)) ids.push_back(id);
    }
    CPU_FREE(set);
    if (known) return ids;
  }
  std::vector<int> all(static_cast<std::size_t>(count_online()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// "150000 100000" or "max 100000": microseconds of processors in so many of time. "-1" or "max" is no limit.
std::optional<double> parse_quota(std::string const& line) {
  std::istringstream text(line);
  double used = 0, period = 0;
  if (!(text >> used >> period) || used <= 0 || period <= 0) return std::nullopt;
  return used / period;
}

std::optional<double> quota_of(Cgroup const& group) {
  if (!group.first_version) return parse_quota(first_line(group.folder + "/cpu.max"));
  return parse_quota(first_line(group.folder + "/cpu.cfs_quota_us") + " " +
                     first_line(group.folder + "/cpu.cfs_period_us"));
}

std::optional<CpuQuota> tightest_quota(std::string const& root) {
  std::optional<CpuQuota> tightest;
  for (auto const& group : cgroups("cpu", root)) {
    auto const processors = quota_of(group);
    if (!processors || (tightest && tightest->processors <= *processors)) continue;
    tightest = CpuQuota{.processors = *processors, .group = group.folder};
  }
  return tightest;
}

int whole_threads(double share) { return static_cast<int>(std::clamp(share + kRoundingErrors, 1.0, kMostThreads)); }

}  // namespace

Processors own_processors(std::string const& root) { return {.ids = affinity(), .quota = tightest_quota(root)}; }

std::size_t common_processors(std::string const& root) {
  for (auto const& group : cgroups("cpuset", root)) {  // the group's own first
    auto const list = first_line(group.folder + (group.first_version ? "/cpuset.cpus" : "/cpuset.cpus.effective"));
    if (auto const count = count_in_list(list); count > 0) return count;
  }
  return static_cast<std::size_t>(count_online());
}

std::size_t count_in_list(std::string_view list) {
  std::size_t count = 0;
  auto const* const end = list.data() + list.size();
  for (auto const* next = list.data(); next < end; ++next) {
    std::size_t first = 0, last = 0;
    auto read = std::from_chars(next, end, first);
    if (read.ec != std::errc{}) return 0;
    last = first;
    if (read.ptr != end && *read.ptr == '-') read = std::from_chars(read.ptr + 1, end, last);
    if (read.ec != std::errc{} || last < first || (read.ptr != end && *read.ptr != ',')) return 0;
    count += last - first + 1;
    next = read.ptr;
  }
  return count;
}

int fair_threads(std::vector<Processors> const& of_host, std::size_t process) {
  auto const& own = of_host[process];
  double share = 0;
  for (auto const id : own.ids) {
    auto const sharing =
        std::ranges::count_if(of_host, [id](Processors const& any) { return std::ranges::binary_search(any.ids, id); });
    share += 1 / static_cast<double>(sharing);
  }
  if (!own.quota) return whole_threads(share);
  auto const in_group = std::ranges::count_if(
      of_host, [&](Processors const& any) { return any.quota && any.quota->group == own.quota->group; });
  return whole_threads(std::min(share, own.quota->processors / static_cast<double>(in_group)));
}

int fair_threads(Processors const& own, std::size_t common, int processes) {
  auto const part_of = [&](double all) { return all / processes; };
  auto share = std::min(static_cast<double>(own.ids.size()), part_of(static_cast<double>(common)));
  if (own.quota) share = std::min(share, part_of(own.quota->processors));
  return whole_threads(share);
}

}  // namespace rankslice
