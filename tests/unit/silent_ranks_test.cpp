#include "comm/silent_ranks.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace rankslice {
namespace {

using namespace std::chrono_literals;

std::vector<RankName> on_host(std::string const& host, std::vector<int> const& ranks) {
  std::vector<RankName> names;
  for (int const rank : ranks) names.push_back({rank, host});
  return names;
}

TEST(DescribeSilence, NamesOneRankAndItsHost) {
  EXPECT_EQ(describe_silence(on_host("h1", {2}), 3s), "no answer from rank(s) 2 (host h1) within 3.0 s");
}

TEST(DescribeSilence, JoinsNeighboursToSpansAndNamesEachHostOnce) {
  std::vector<RankName> const silent{{2, "h1"}, {5, "h3"}, {6, "h3"}, {7, "h1"}};
  EXPECT_EQ(describe_silence(silent, 3s), "no answer from rank(s) 2, 5-7 (hosts h1, h3) within 3.0 s");
}

TEST(DescribeSilence, EndsTheLastSpanWithTheLastRank) {
  EXPECT_EQ(describe_silence(on_host("h", {0, 1, 2, 3}), 1500ms), "no answer from rank(s) 0-3 (host h) within 1.5 s");
}

TEST(DescribeSilence, NamesSixSpansAndCountsTheRanksBeyond) {
  EXPECT_EQ(describe_silence(on_host("h", {0, 2, 4, 6, 8, 10}), 1s),
            "no answer from rank(s) 0, 2, 4, 6, 8, 10 (host h) within 1.0 s");
  EXPECT_EQ(describe_silence(on_host("h", {0, 2, 4, 6, 8, 10, 11, 13, 15, 16}), 1s),
            "no answer from rank(s) 0, 2, 4, 6, 8, 10-11 and 3 more (host h) within 1.0 s");
}

TEST(DescribeSilence, NamesSixHostsAndCountsTheOthers) {
  std::vector<RankName> silent;
  for (int rank = 0; rank < 8; ++rank) silent.push_back({rank, fmt::format("h{}", rank)});
  EXPECT_EQ(describe_silence(silent, 300s),
            "no answer from rank(s) 0-7 (hosts h0, h1, h2, h3, h4, h5 and 2 more) within 300.0 s");
}

TEST(DescribeAbsence, NamesTheRanksAndWhereTheyShouldHaveBeen) {
  EXPECT_EQ(describe_absence(std::vector{1, 2, 3, 7}, "h:29400", 3s),
            "rank(s) 1-3, 7 did not come to h:29400 within 3.0 s");
}

}  // namespace
}  // namespace rankslice
