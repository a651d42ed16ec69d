#include "cli/bench_report.hpp"

#include <fmt/format.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <span>

#include "facts/words.hpp"

namespace rankslice::cli {

namespace {

constexpr double kGigabyte = 1e9;

double speed(RunResult const& run) { return static_cast<double>(run.bytes) / run.median() / kGigabyte; }

double microseconds_each(RunResult const& run) { return run.median() * 1e6 / static_cast<double>(run.count.number); }

Json or_null(std::string const& text) { return text.empty() ? Json(nullptr) : Json(text); }

/// "… name  : text" in a file of lines; empty when it is not there.
std::string text_behind(char const* path, std::string_view name) {
  std::ifstream file(path);
  for (std::string text; std::getline(file, text);) {
    auto const colon = text.find(": ");
    if (text.starts_with(name) && colon != std::string::npos) return text.substr(colon + 2);
  }
  return {};
}

/// Of "always [madvise] never", "madvise"; empty when the file is not there.
std::string chosen_word(char const* path) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    if (word.size() > 2 && word.front() == '[') return word.substr(1, word.size() - 2);
  }
  return {};
}

Json memory_json(RunResult const& run) {
  if (!run.memory) return nullptr;
  auto list = Json::array();
  for (std::size_t rank = 0; rank < run.memory->size(); ++rank) {
    auto const& seen = (*run.memory)[rank];
    list.push_back(
        {{"rank", rank}, {"owned_bytes", seen.kept}, {"rss_before_bytes", seen.before}, {"peak_rss_bytes", seen.peak}});
  }
  return list;
}

Json left_json(RunResult const& run) {
  auto list = Json::array();
  for (auto const& bytes : run.left_in_cache) list.push_back(bytes ? Json(*bytes) : Json(nullptr));
  return list;
}

Json run_json(RunResult const& run) {
  Json json{{"name", run.name},           {"meaning", run.meaning},   {"bytes", run.bytes},
            {"seconds", run.seconds},     {"seconds_min", run.min()}, {"seconds_median", run.median()},
            {"gb_per_second", speed(run)}};
  if (run.keeps_memory) json["memory"] = memory_json(run);
  if (!run.left_in_cache.empty()) json["left_in_page_cache_bytes"] = left_json(run);
  if (run.count.number > 0) {
    json["count"] = run.count.number;
    json["of"] = run.count.of;
    json["microseconds_each"] = microseconds_each(run);
  }
  return json;
}

Json step_json(StepResult const& step) {
  auto runs = Json::array();
  for (auto const& run : step.runs) runs.push_back(run_json(run));
  auto ratios = Json::array();
  for (auto const& comparison : step.comparisons) {
    ratios.push_back({{"ours", step.runs[comparison.ours].name},
                      {"limit", step.runs[comparison.limit].name},
                      {"of_minima", step.ratio_of_minima(comparison)},
                      {"of_medians", step.ratio_of_medians(comparison)}});
  }
  Json json{{"step", step.name}, {"runs", runs}, {"ratios", ratios}};
  if (!step.left_out.empty()) json["left_out"] = Json::object();
  for (auto const& [name, why] : step.left_out) json["left_out"][name] = why;
  return json;
}

/// Where this rank runs.
Json this_rank(int rank) {
  utsname system{};
  ::uname(&system);
  auto const cores = ::sysconf(_SC_NPROCESSORS_ONLN);
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  auto const usable = ::sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : cores;
  return {{"rank", rank},
          {"host", system.nodename},
          {"cpu", or_null(text_behind("/proc/cpuinfo", "model name"))},
          {"cores", cores},
          {"usable_cores", usable},
          {"kernel", system.release},
          {"huge_pages", or_null(chosen_word("/sys/kernel/mm/transparent_hugepage/enabled"))}};
}

std::string format_name(CheckpointFormat format) {
  switch (format) {
    case CheckpointFormat::store:
      return "store";
    case CheckpointFormat::shards:
      return "shards";
    default:
      return "huggingface";
  }
}

std::string text_of(Json const& value) { return value.is_string() ? value.get<std::string>() : "unknown"; }

constexpr auto kLine = "{:<12} {:<28} {:>12} {:>10} {:>10} {:>9}{}\n";
constexpr auto kRatios = " {:>8} {:>8}";

std::string line(std::string const& step, RunResult const& run, std::string const& name, std::string const& ratios) {
  auto const counts = run.count.number > 0;
  return fmt::format(kLine, step, name, counts ? counted(run.count.number, run.count.of) : human_bytes(run.bytes),
                     fmt::format("{:.2f}", run.min() * 1e3), fmt::format("{:.2f}", run.median() * 1e3),
                     counts ? fmt::format("{:.2f} us", microseconds_each(run)) : fmt::format("{:.2f}", speed(run)),
                     ratios);
}

/// Each of ours, and its limits below it.
std::string step_lines(StepResult const& step) {
  std::string text;
  auto above = step.runs.size();
  for (auto const& comparison : step.comparisons) {
    auto const& ours = step.runs[comparison.ours];
    auto const& limit = step.runs[comparison.limit];
    if (comparison.ours != above) text += line(text.empty() ? step.name : "", ours, ours.name, "");
    above = comparison.ours;
    auto const ratios = fmt::format(kRatios, fmt::format("{:.2f}", step.ratio_of_minima(comparison)),
                                    fmt::format("{:.2f}", step.ratio_of_medians(comparison)));
    text += line("", limit, "  : " + limit.name, ratios);
  }
  return text;
}

/// `told`: the runs that were explained before.
std::string meanings(StepResult const& step, std::set<std::string>& told) {
  std::string text;
  for (auto const& run : step.runs) {
    if (!told.insert(run.name).second) continue;
    text += fmt::format("{:<12} {:<28} {}\n", text.empty() ? step.name : "", run.name, run.meaning);
  }
  return text;
}

std::string memory_lines(StepResult const& step) {
  std::string text;
  for (auto const& run : step.runs) {
    if (!run.keeps_memory) continue;
    if (!run.memory) {
      text += fmt::format("{:<28} not known: this system does not let a peak be reset\n", run.name);
      continue;
    }
    auto const over = [](ResidentMemory const& seen) { return seen.peak - std::min(seen.peak, seen.kept); };
    auto const& worst = *std::ranges::max_element(*run.memory, {}, over);
    text += fmt::format("{:<28} {} over the {} that it owns; {} were resident before\n", run.name,
                        human_bytes(over(worst)), human_bytes(worst.kept), human_bytes(worst.before));
  }
  if (text.empty()) return {};
  auto const what =
      step.name.starts_with("compare") ? "peak memory, less pages of files, of" : "peak resident memory of";
  return fmt::format("\n{}: {} the rank with most over what it owns\n{}", step.name, what, text);
}

/// In which repeats of a run how much was there already.
std::string began_warm(RunResult const& run) {
  std::vector<std::string> repeats;
  for (std::size_t i = 0; i < run.left_in_cache.size(); ++i) {
    auto const& left = run.left_in_cache[i];
    if (left == 0U) continue;
    repeats.push_back(fmt::format("{} ({})", i + 1, left ? human_bytes(*left) : "not known"));
  }
  if (repeats.empty()) return {};
  return fmt::format("{:<28} began with some of it in the page cache in repeat {}\n", run.name,
                     fmt::join(repeats, ", "));
}

std::string cache_lines(StepResult const& step) {
  if (!step.is_cold) return {};
  std::string warm, first;
  for (auto const& run : step.runs) {
    warm += began_warm(run);
    first += fmt::format("{:<28} {:>12.2f} ms\n", run.name, run.seconds.front() * 1e3);
  }
  return fmt::format(
      "\n{}: cold is the page cache of this system. What the disk's own host or controller keeps is not forgotten, so\n"
      "the first repeat tells most of the disk\n{}{}",
      step.name, first, warm.empty() ? "Nothing was in the page cache when a run began.\n" : warm);
}

std::string heading(BenchReport const& report) {
  auto const& first = report.ranks.front();
  std::set<std::string> hosts;
  for (auto const& rank : report.ranks) hosts.insert(rank["host"]);
  auto text = fmt::format(
      "{}: {} ({}), {}, {}\n", report.checkpoint.empty() ? "synthetic checkpoint " + report.preset : report.checkpoint,
      report.family, format_name(report.format), counted(report.tensors, "tensor"), human_bytes(report.bytes));
  text += fmt::format("{} on {}, each on {} of {}, {}; Linux {}, huge pages: {}\n",
                      counted(report.ranks.size(), "rank"), counted(hosts.size(), "host"),
                      first["usable_cores"].get<int>(), counted(first["cores"].get<std::uint64_t>(), "core"),
                      text_of(first["cpu"]), text_of(first["kernel"]), text_of(first["huge_pages"]));
  text += fmt::format("read from {}, but for cold steps with a warm page cache: every rank has read its bytes before\n",
                      text_of(or_null(report.file_system)));
  if (!report.scratch.empty()) {
    text += fmt::format("written to {}, below {}\n", text_of(or_null(report.scratch_file_system)), report.scratch);
  }
  return text + "\n";
}

}  // namespace

Json describe_ranks(Communicator& world) {
  auto const mine = this_rank(world.rank()).dump();
  auto list = Json::array();
  for (auto const& bytes : world.gather(std::as_bytes(std::span(mine)), 0)) {
    auto const* const text = reinterpret_cast<char const*>(bytes.data());
    list.push_back(Json::parse(text, text + bytes.size()));
  }
  return list;
}

Json to_json(BenchReport const& report) {
  auto steps = Json::array();
  for (auto const& step : report.steps) steps.push_back(step_json(step));
  return {{"schema", "rankslice.bench/1"},
          {"command", "bench"},
          {"ok", false},
          {"family", report.family},
          {"ranks", report.ranks.size()},
          {"mesh",
           {{"ep_replicate", report.mesh.ep_replicate}, {"ep_shard", report.mesh.ep_shard}, {"ep", report.mesh.ep}}},
          {"comm", report.comm},
          {"checkpoint",
           {{"path", or_null(report.checkpoint)},
            {"preset", or_null(report.preset)},
            {"format", format_name(report.format)},
            {"tensors", report.tensors},
            {"bytes", report.bytes},
            {"file_system", or_null(report.file_system)}}},
          {"repeats", report.repeats},
          {"page_cache", "warm"},
          {"scratch", {{"path", or_null(report.scratch)}, {"file_system", or_null(report.scratch_file_system)}}},
          {"rank", report.ranks},
          {"steps", steps}};
}

std::string to_text(BenchReport const& report) {
  auto text = heading(report);
  text += fmt::format(kLine, "step", "run", "bytes", "min ms", "median ms", "GB/s",
                      fmt::format(kRatios, "of min", "of med."));
  for (auto const& step : report.steps) text += step_lines(step);
  for (auto const& step : report.steps) text += memory_lines(step);
  for (auto const& step : report.steps) text += cache_lines(step);
  text += fmt::format(
      "\nBelow each of ours stand its limits (:), measured in the same {} by the same ranks on as many bytes.\n"
      "Times are the slowest rank's from a common start. GB/s: the bytes of all ranks, each counted once, in the\n"
      "median time; us: the median time for each one. The last two columns are ours divided by the limit: below 1.00\n"
      "ours is faster.\n\n",
      counted(static_cast<std::uint64_t>(report.repeats), "repeat"));
  std::set<std::string> told;
  for (auto const& step : report.steps) text += meanings(step, told);
  return text;
}

}  // namespace rankslice::cli
