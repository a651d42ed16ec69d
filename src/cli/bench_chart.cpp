#include <fmt/format.h>

#include <algorithm>

#include "cli/bench_report.hpp"
#include "facts/words.hpp"

namespace rankslice::cli {

namespace {

BarRow::Kind kind_of(std::string const& name) {
  if (name.starts_with("rankslice")) return BarRow::Kind::ours;
  return name.starts_with("pread") ? BarRow::Kind::limit : BarRow::Kind::theirs;
}

/// Of the rank that has most.
std::string memory_over_tensors(RunResult const& run) {
  if (!run.memory) return {};
  auto const over = [](ResidentMemory const& seen) { return seen.peak - std::min(seen.peak, seen.kept); };
  auto const& worst = *std::ranges::max_element(*run.memory, {}, over);
  constexpr double kMegabyte = 1e6;
  return fmt::format("{:.0f} MB ({:.0f})", static_cast<double>(over(worst)) / kMegabyte,
                     static_cast<double>(worst.before) / kMegabyte);
}

void add_bars(BarChart& chart, StepResult const& step) {
  auto const series = chart.series.size();
  chart.series.emplace_back(step.is_cold ? "not in the page cache" : "in the page cache");
  for (auto const& run : step.runs) {
    auto row = std::ranges::find(chart.rows, run.name, &BarRow::name);
    if (row == chart.rows.end()) {
      chart.rows.push_back({.name = run.name, .kind = kind_of(run.name), .note = memory_over_tensors(run)});
      row = chart.rows.end() - 1;
    }
    row->seconds.resize(series);
    row->seconds.emplace_back(run.min());
  }
  for (auto& row : chart.rows) row.seconds.resize(series + 1);
}

std::string versions_of(std::vector<OtherLoader> const& loaders) {
  std::vector<std::string> known;
  for (auto const& loader : loaders) {
    if (!loader.version.empty()) known.push_back(loader.way + " " + loader.version);
  }
  return fmt::format("{}", fmt::join(known, ", "));
}

std::string text_of(Json const& value) { return value.is_string() ? value.get<std::string>() : "unknown"; }

std::vector<std::string> caption_of(BenchReport const& report) {
  auto const& first = report.ranks.front();
  return {fmt::format("Opening and loading into the native layout; without --verify off all bytes are proved. The "
                      "slowest rank's time, the least of {}; × is times that of the first line.",
                      counted(static_cast<std::uint64_t>(report.repeats), "repeat")),
          fmt::format("Memory: the peak less the tensors and pages of files (and what stood there before). rankslice: "
                      "in ranks that have run for a while, huge pages: {}. The others: in fresh processes, one for "
                      "each rank, libraries imported before, memory as they take it.",
                      report.huge_pages),
          fmt::format("{}, {} of {} a rank; Linux {}, {}. {}", text_of(first["cpu"]), first["usable_cores"].get<int>(),
                      counted(first["cores"].get<std::uint64_t>(), "core"), text_of(first["kernel"]),
                      report.file_system.empty() ? "unknown file system" : report.file_system,
                      versions_of(report.loaders))};
}

}  // namespace

BarChart to_chart(BenchReport const& report, std::string const& command) {
  BarChart chart{.title = fmt::format("Loading a {} checkpoint of {} on {}", report.family, human_bytes(report.bytes),
                                      counted(report.ranks.size(), "rank")),
                 .series = {},
                 .notes = "memory over tensors",
                 .rows = {},
                 .caption = caption_of(report),
                 .command = command};
  for (auto const& step : report.steps) {
    if (step.name.starts_with("compare")) add_bars(chart, step);
  }
  return chart;
}

}  // namespace rankslice::cli
