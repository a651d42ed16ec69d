#include "facts/metrics.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string_view>
#include <utility>
#include <vector>

namespace rankslice {

namespace {

using Labels = std::vector<std::pair<std::string_view, std::string>>;

std::string escaped(std::string_view text) {
  std::string out;
  for (auto const c : text) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
  return out;
}

/// The lines of one metric.
class Metric {
 public:
  Metric(std::string name, std::string_view help, std::string command)
      : name_("rankslice_" + std::move(name)),
        head_(fmt::format("# HELP {0} {1}\n# TYPE {0} gauge\n", name_, help)),
        command_(std::move(command)) {}

  void add(Labels const& labels, double value) {
    std::string text = fmt::format("command=\"{}\"", escaped(command_));
    for (auto const& [key, label] : labels) text += fmt::format(",{}=\"{}\"", key, escaped(label));
    samples_ += fmt::format("{}{{{}}} {}\n", name_, text, value);
  }

  /// Nothing for a metric without samples.
  [[nodiscard]] std::string text() const { return samples_.empty() ? "" : head_ + samples_; }

 private:
  std::string name_, head_, command_, samples_;
};

std::string phase_metrics(Json const& report, std::string const& command) {
  Metric seconds("phase_seconds", "Time that a finished phase took, the slowest rank's.", command);
  for (auto const& [phase, value] : report["seconds"].items()) {
    if (phase != "total") seconds.add({{"phase", phase}}, value);
  }
  return seconds.text();
}

std::string progress_metrics(RunFacts const& facts, std::string const& command) {
  Labels at{{"rank", std::to_string(facts.rank)}};
  if (!facts.phase.empty()) at.insert(at.begin(), {"phase", facts.phase});
  Metric when("last_progress_timestamp_seconds", "When the rank last finished a block or a phase.", command);
  when.add(at, facts.progress_s);
  Metric done("phase_done_bytes", "What the rank has done of the phase under way.", command);
  Metric total("phase_bytes", "What it has to do in that phase.", command);
  if (facts.progress.total > 0) {
    done.add(at, static_cast<double>(facts.progress.done));
    total.add(at, static_cast<double>(facts.progress.total));
  }
  return when.text() + done.text() + total.text();
}

std::string rank_metrics(Json const& report, std::string const& command) {
  constexpr std::pair<std::string_view, std::pair<char const*, char const*>> kOfRanks[] = {
      {"bytes_read", {"read_bytes", "Tensor bytes that the rank read."}},
      {"bytes_owned", {"owned_bytes", "Tensor bytes that the rank holds."}},
      {"seconds_load", {"load_seconds", "From the start to the rank's last block."}},
      {"peak_rss_bytes", {"peak_resident_bytes", "Most memory of the rank's process."}}};
  std::string text;
  for (auto const& [field, metric] : kOfRanks) {
    Metric of_ranks(metric.first, metric.second, command);
    for (auto const& rank : report["rank"]) {
      of_ranks.add({{"rank", rank["rank"].dump()}, {"host", rank["host"]}}, rank.at(field));
    }
    text += of_ranks.text();
  }
  return text;
}

}  // namespace

std::string metrics_text(Json const& report, RunFacts const& facts) {
  std::string const command = report["command"];
  auto const one = [&](std::string name, std::string_view help, double value, Labels const& labels = {}) {
    Metric metric(std::move(name), help, command);
    metric.add(labels, value);
    return metric.text();
  };
  auto text =
      one("info", "What runs.", 1,
          {{"version", report["versions"]["rankslice"]}, {"comm", report["comm"]}, {"device", report["device"]}});
  text += one("ranks", "Ranks of the run.", report["ranks"]);
  text += one("start_timestamp_seconds", "When the run began.", facts.started_s);
  text += one("running", "1 until the run ends.", facts.exit_code ? 0 : 1);
  if (facts.exit_code) text += one("exit_code", "How it ended; 0 is well.", *facts.exit_code);
  text += progress_metrics(facts, command) + phase_metrics(report, command) + rank_metrics(report, command);
  auto const& verified = report["verify"];
  text += one("mismatches", "Differences that verification found.",
              static_cast<double>(verified["mismatches"].size()) + verified["unlisted_mismatches"].get<double>());
  return text;
}

}  // namespace rankslice
