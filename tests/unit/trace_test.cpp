#include "facts/trace.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace rankslice {
namespace {

RankClock clock_of(std::string kernel, std::vector<std::int64_t> beats) {
  return {.kernel = std::move(kernel), .beats = std::move(beats)};
}

TEST(ClockOffsets, AreNothingUnderOneKernelHoweverLateARankLeavesABarrier) {
  EXPECT_EQ(clock_offsets({clock_of("a", {10, 20, 30}), clock_of("a", {11, 27, 95})}),
            (std::vector<std::int64_t>{0, 0}));
}

TEST(ClockOffsets, AreTheMedianOfWhatOtherKernelsAreAhead) {
  // Rank 1 is 1000 ahead, and once 400 late; rank 2 is 70 behind, and once rank 0 was late.
  EXPECT_EQ(
      clock_offsets({clock_of("a", {10, 20, 30}), clock_of("b", {1010, 1420, 1030}), clock_of("c", {-60, -50, -99})}),
      (std::vector<std::int64_t>{0, 1000, -70}));
}

TEST(ClockOffsets, AreOneForAllRanksOfAKernel) {
  EXPECT_EQ(clock_offsets({clock_of("a", {0, 0, 0}), clock_of("b", {100, 100, 900}), clock_of("b", {100, 500, 700})}),
            (std::vector<std::int64_t>{0, 500, 500}));
}

TEST(ClockOffsets, AreNothingForOneRankThatMetNobody) {
  EXPECT_EQ(clock_offsets({clock_of("a", {})}), std::vector<std::int64_t>{0});
}

TEST(ChromeTrace, PutsEachRanksTimesOnTheClockOfTheFirst) {
  Span const span{.name = "load", .kind = "phase", .begin_ns = 5'000, .end_ns = 9'500};
  auto shifted = span;
  shifted.begin_ns += 1'000'000;
  shifted.end_ns += 1'000'000;
  auto const trace = chrome_trace({{.rank = 0, .host = "h0", .clock = clock_of("a", {7}), .spans = {span}},
                                   {.rank = 1, .host = "h1", .clock = clock_of("b", {1'000'007}), .spans = {shifted}}},
                                  2'000, {{"command", "load"}});
  std::vector<Json> rows, spans;
  for (auto const& event : trace["traceEvents"]) (event["ph"] == "M" ? rows : spans).push_back(event);
  ASSERT_EQ(spans.size(), 2U);
  for (std::size_t i = 0; i < spans.size(); ++i) {
    EXPECT_EQ(spans[i]["pid"], i);
    EXPECT_EQ(spans[i]["ts"], 3.0);  // microseconds
    EXPECT_EQ(spans[i]["dur"], 4.5);
  }
  EXPECT_EQ(rows.front()["args"]["name"], "rank 0 on h0");
  EXPECT_EQ(trace["otherData"]["command"], "load");
}

}  // namespace
}  // namespace rankslice
