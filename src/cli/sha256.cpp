#include "cli/sha256.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <span>

#include "cli/listing.hpp"

namespace rankslice::cli {

std::optional<FileSums> find_asked_sums(Job& job) {
  auto const& options = job.options;
  if (!options.sha256) return std::nullopt;
  on_every_rank(job.world, [&] {
    if (job.world.rank() != 0 || std::filesystem::is_directory(options.input)) return;
    throw UsageError(fmt::format("--sha256 checks the files of a folder, and {} is none", options.input));
  });
  auto sums = find_file_sums(options.input, *options.sha256, job.world);
  if (!sums.unlisted.empty()) {
    constexpr std::size_t kNamed = 8;
    std::span const named(sums.unlisted.data(), std::min(kNamed, sums.unlisted.size()));
    job.console.warn(
        fmt::format("{} not checked, {}: {}{}", counted(sums.unlisted.size(), "file"),
                    sums.source == "blobs" ? "no links to blobs" : "not in " + sums.source, fmt::join(named, ", "),
                    sums.unlisted.size() > kNamed ? fmt::format(" and {} more", sums.unlisted.size() - kNamed) : ""));
  }
  return sums;
}

void check_asked_sums(Job& job, FileSums const& sums) {
  FileSumsReport checked;
  auto const seconds = job.timed("sha256", [&] { checked = check_file_sums(sums, job.world, job.call()); });
  auto mismatches = Json::array();
  for (auto const& [file, expected, found, rank] : checked.mismatches) {
    mismatches.push_back({{"file", file}, {"expected", expected}, {"found", found}, {"rank", rank}});
  }
  job.report["verify"]["sha256"] = {{"source", sums.source},
                                    {"files", sums.files.size()},
                                    {"bytes", checked.bytes},
                                    {"mismatches", std::move(mismatches)},
                                    {"not_listed", sums.unlisted}};
  on_every_rank(job.world, [&] { checked.throw_if_bad(); });
  job.console.say(fmt::format("sha256   {:.2f} s  {}, {}: no difference; by {}", seconds,
                              counted(sums.files.size(), "file"), human_bytes(checked.bytes),
                              sums.source == "blobs" ? "the names of their blobs" : sums.source));
}

}  // namespace rankslice::cli
