#include <fmt/format.h>

#include <filesystem>

#include "cli/findings.hpp"
#include "core/literals.hpp"
#include "io/direct_reader.hpp"
#include "io/file_system.hpp"
#include "io/host_limits.hpp"
#include "io/read_engine.hpp"

namespace rankslice::cli {

namespace {

constexpr std::uint64_t kManyFiles = 4096;
constexpr auto kLittleRoom = 1_GiB;

Finding find_io_uring() {
  auto const why_not = why_no_uring_engine();
  return {.check = "io_uring", .text = why_not.empty() ? "available" : why_not};
}

Finding find_huge_pages() {
  auto const given = huge_pages();
  if (given == "always" || given == "madvise") return {.check = "huge pages", .text = given};
  return {.check = "huge pages",
          .text = given.empty() ? "the system does not say" : given,
          .advice =
              "loading takes about a quarter longer on small pages; root can have them by: echo madvise > "
              "/sys/kernel/mm/transparent_hugepage/enabled"};
}

Finding find_open_files() {
  auto const limit = open_files_limit();
  Finding finding{.check = "open files", .text = fmt::format("up to {}", limit)};
  if (limit < kManyFiles) {
    finding.advice =
        "a folder of shards has a file for each rank, all open at once; raise it (ulimit -Hn, LimitNOFILE)";
  }
  return finding;
}

Finding find_memory() {
  auto const limit = memory_limit();
  if (!limit) return {.check = "memory", .text = "the system does not say"};
  return {.check = "memory", .text = fmt::format("{}, by {}", human_bytes(limit->bytes), limit->by)};
}

Finding find_file_system(std::string const& path, std::string const& why_no_probe) {
  auto const found = look_at_file_system(path);
  auto const network = is_network_file_system(found.name);
  Finding finding{
      .check = "path",
      .text = fmt::format("{}: {}, {}, {} free", path, found.name, network ? "other hosts may see it" : "of this host",
                          human_bytes(found.free_bytes)),
      .compared = fmt::format("{}: {} {}", path, found.name, why_no_probe)};
  if (found.name == "tmpfs" || found.name == "ramfs") {
    finding.advice = "what lies there takes memory of this host, which counts for the job";
  } else if (found.free_bytes < kLittleRoom) {
    finding.advice = "an output of any size needs more room";
  }
  if (!why_no_probe.empty()) finding.advice = "it can be read, not written: " + why_no_probe;
  return finding;
}

Finding find_direct_reads(std::string const& path, std::string const& file) {
  DirectBlock block;
  auto const opened = open_direct_reader(file, block);
  Finding finding{.check = "O_DIRECT", .text = {}};
  if (opened.past_page_cache) {
    finding.text = fmt::format("{}: reads go past the page cache", path);
  } else {
    finding.text = fmt::format("{}: reads may come from the page cache", path);
    finding.advice =
        "--verify reread then proves the memory of a host, and not its disk, unless other hosts read again";
  }
  return finding;
}

}  // namespace

std::vector<Finding> find_host_limits() {
  return {find_io_uring(), find_huge_pages(), find_open_files(), find_memory()};
}

std::vector<Finding> find_path(std::string const& path, std::string const& probe, std::string const& why_no_probe) {
  std::vector<Finding> findings;
  try {
    findings.push_back(find_file_system(path, why_no_probe));
    auto const file = std::filesystem::is_regular_file(path) ? path : probe;
    if (!file.empty()) findings.push_back(find_direct_reads(path, file));
  } catch (Error const& error) {
    findings.push_back({.check = "path",
                        .text = error.what(),
                        .advice = "name a folder or file that is there, on every host",
                        .code = error.code});
  }
  return findings;
}

}  // namespace rankslice::cli
