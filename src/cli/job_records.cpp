#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "cli/job.hpp"
#include "facts/metrics.hpp"
#include "io/file.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kMetricsInterval = std::chrono::seconds(5);

double unix_seconds(std::chrono::system_clock::time_point time) {
  return std::round(std::chrono::duration<double, std::milli>(time.time_since_epoch()).count()) / 1e3;
}

}  // namespace

void write_whole(std::string const& path, std::string const& text) {
  StagedOutput output(path, StagedOutput::Kind::file, true);
  auto writer = FileWriter::create(output.path());
  writer.write(std::as_bytes(std::span(text)), 0);
  writer.close();
  output.publish();
}

void Job::prepare_records() {
  for (auto const* path : {&options.report, &options.metrics_file, &options.trace, &options.chart}) {
    expect_free(*path, StagedOutput::Kind::file, true);
  }
  report_ready_ = !options.report.empty();
  metrics_ready_ = !options.metrics_file.empty() && world.rank() == 0;
  trace_ready_ = !options.trace.empty() && world.rank() == 0;
  publish_metrics();
}

void Job::start_trace() {
  if (!options.trace.empty()) clock_ = measure_clock(world);
}

double Job::timed(std::string const& phase, std::function<void()> const& step) {
  Timeline::Phase open(timeline_, phase);
  console.set_phase(phase);
  step();
  std::vector<std::uint64_t> nanoseconds{static_cast<std::uint64_t>(open.close())};
  world.all_reduce(nanoseconds, Reduce::max);
  timeline_.add_wait();
  console.set_phase(timeline_.phase());
  auto const seconds = static_cast<double>(nanoseconds.front()) / 1e9;
  report["seconds"][phase] = seconds;
  got_on_ = std::chrono::system_clock::now();
  publish_metrics();
  return seconds;
}

void Job::got_on() {
  got_on_ = std::chrono::system_clock::now();
  if (std::chrono::steady_clock::now() - metrics_written_ >= kMetricsInterval) publish_metrics();
}

void Job::publish_metrics(std::optional<ExitCode> code) {
  if (!metrics_ready_) return;
  metrics_written_ = std::chrono::steady_clock::now();
  RunFacts facts{.rank = options.rank.value_or(world.rank()),
                 .started_s = unix_seconds(began_),
                 .progress_s = unix_seconds(got_on_),
                 .phase = timeline_.phase(),
                 .progress = timeline_.progress()};
  if (code) facts.exit_code = static_cast<int>(*code);
  try {
    write_whole(options.metrics_file, metrics_text(report, facts));
  } catch (Error const& error) {  // watching is not the job
    metrics_ready_ = false;
    console.warn(fmt::format("no more metrics: {}", error.what()));
  }
}

RankTrace Job::own_trace() const {
  return {.rank = options.rank.value_or(world.rank()),
          .host = world.host(world.rank()),
          .clock = clock_,
          .spans = timeline_.spans()};
}

void Job::gather_trace() {
  if (!clock_.beats.empty()) traces_ = gather_traces(own_trace(), world);
}

void Job::publish_trace() {
  if (!std::exchange(trace_ready_, false)) return;
  if (traces_.empty()) traces_.push_back(own_trace());  // of an error that the other ranks do not know of
  Json about{{"program", "rankslice"}, {"version", report["versions"]["rankslice"]}, {"command", options.command}};
  if (report.contains("error")) about["error"] = report["error"];
  auto const start = std::chrono::nanoseconds(start_.time_since_epoch()).count();
  write_whole(options.trace, json_text(chrome_trace(traces_, start, about)));
}

void Job::finish() {
  for (auto const& line : readings_.lines()) console.detail(line);
  report["ok"] = true;
  publish(ExitCode::done);
}

void Job::fail(Error const& error) {
  report["ok"] = false;
  report["error"] = describe_error(error);
  if (error.rank < 0) report["error"]["rank"] = world.rank();
  auto& mismatches = report["verify"]["mismatches"];
  if (error.code == ExitCode::difference && mismatches.empty()) {
    mismatches.push_back({{"tensor", error.tensor}, {"what", error.what()}});
  }
  publish(error.code);
}

void Job::publish(ExitCode code) {
  if (world.rank() != 0) return;
  report["seconds"]["total"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  auto const text = json_text(report);
  publish_metrics(code);
  if (options.json && !listed) print_data(text);
  if (std::exchange(report_ready_, false)) write_whole(options.report, text);
  publish_trace();
}

}  // namespace rankslice::cli
