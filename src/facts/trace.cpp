#include "facts/trace.hpp"

#include <algorithm>
#include <fstream>
#include <map>
#include <utility>

namespace rankslice {

namespace {

constexpr int kBeats = 7;

/// Of the running kernel, so that neither containers nor equal host names matter.
std::string kernel_id(std::string const& host) {
  std::string id;
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  return std::getline(file, id) ? id : host;
}

std::int64_t median(std::vector<std::int64_t> values) {
  auto const middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

double microseconds(std::int64_t ns) { return static_cast<double>(ns) / 1e3; }

Json describe_span(Span const& span, int rank, std::int64_t zero_ns) {
  Json event{{"name", span.name},
             {"cat", span.kind},
             {"ph", "X"},
             {"pid", rank},
             {"tid", 0},
             {"ts", microseconds(span.begin_ns - zero_ns)},
             {"dur", microseconds(span.end_ns - span.begin_ns)}};
  if (span.failed) event["args"]["failed"] = true;
  if (span.kind == "blocks") {
    event["args"] = {
        {"blocks", span.blocks}, {"bytes", span.bytes}, {"longest_block_us", microseconds(span.longest_ns)}};
  }
  return event;
}

/// The name of a rank's row, and its place among the others.
void add_row(Json& events, RankTrace const& trace) {
  auto const row = [&](char const* what, Json args) {
    events.push_back({{"name", what}, {"ph", "M"}, {"pid", trace.rank}, {"tid", 0}, {"args", std::move(args)}});
  };
  row("process_name", {{"name", "rank " + std::to_string(trace.rank) + " on " + trace.host}});
  row("process_sort_index", {{"sort_index", trace.rank}});
}

Json pack(RankTrace const& trace) {
  Json spans = Json::array();
  for (auto const& span : trace.spans) {
    spans.push_back(
        {span.name, span.kind, span.begin_ns, span.end_ns, span.failed, span.blocks, span.bytes, span.longest_ns});
  }
  return {{"rank", trace.rank},
          {"host", trace.host},
          {"kernel", trace.clock.kernel},
          {"beats", trace.clock.beats},
          {"spans", std::move(spans)}};
}

std::string_view kind_named(std::string const& name) {
  for (std::string_view const kind : {"blocks", "wait"}) {
    if (kind == name) return kind;
  }
  return "phase";
}

RankTrace unpack(Json const& packed) {
  RankTrace trace{.rank = packed["rank"],
                  .host = packed["host"],
                  .clock = {.kernel = packed["kernel"], .beats = packed["beats"]},
                  .spans = {}};
  for (auto const& span : packed["spans"]) {
    trace.spans.push_back({.name = span[0],
                           .kind = kind_named(span[1]),
                           .begin_ns = span[2],
                           .end_ns = span[3],
                           .failed = span[4],
                           .blocks = span[5],
                           .bytes = span[6],
                           .longest_ns = span[7]});
  }
  return trace;
}

}  // namespace

RankClock measure_clock(Communicator& world) {
  RankClock clock{.kernel = kernel_id(world.host(world.rank())), .beats = {}};
  for (int i = 0; i < kBeats; ++i) {
    barrier(world);
    clock.beats.push_back(steady_ns());
  }
  return clock;
}

std::vector<std::int64_t> clock_offsets(std::vector<RankClock> const& clocks) {
  std::map<std::string, std::vector<std::int64_t>> ahead;  // of rank 0's, by kernel
  for (auto const& clock : clocks) {
    for (std::size_t i = 0; i < clock.beats.size(); ++i) {
      ahead[clock.kernel].push_back(clock.beats[i] - clocks.front().beats[i]);
    }
  }
  std::vector<std::int64_t> offsets;
  for (auto const& clock : clocks) {
    offsets.push_back(clock.kernel == clocks.front().kernel ? 0 : median(ahead.at(clock.kernel)));
  }
  return offsets;
}

Json chrome_trace(std::vector<RankTrace> const& ranks, std::int64_t start_ns, Json const& about) {
  std::vector<RankClock> clocks;
  for (auto const& trace : ranks) clocks.push_back(trace.clock);
  auto const offsets = clock_offsets(clocks);
  Json events = Json::array();
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    add_row(events, ranks[i]);
    for (auto const& span : ranks[i].spans) events.push_back(describe_span(span, ranks[i].rank, start_ns + offsets[i]));
  }
  return {{"displayTimeUnit", "ms"}, {"otherData", about}, {"traceEvents", std::move(events)}};
}

std::vector<RankTrace> gather_traces(RankTrace const& mine, Communicator& world) {
  auto const text = json_text(pack(mine));
  std::vector<RankTrace> traces;
  for (auto const& packed : world.gather(std::as_bytes(std::span(text)), 0)) {
    auto const* const begin = reinterpret_cast<char const*>(packed.data());
    traces.push_back(unpack(Json::parse(begin, begin + packed.size())));
  }
  return traces;
}

}  // namespace rankslice
