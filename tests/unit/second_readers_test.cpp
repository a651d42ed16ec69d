// Who reads the bytes of each rank again.

#include "verify/second_readers.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace rankslice::test {
namespace {

using testing::ElementsAre;

using Hosts = std::vector<std::string>;

TEST(SecondReaders, OfOneRankIsItself) { EXPECT_THAT(second_readers({"a"}), ElementsAre(0)); }

TEST(SecondReaders, OnOneHostAreTheNextRanks) { EXPECT_THAT(second_readers({"a", "a", "a"}), ElementsAre(1, 2, 0)); }

TEST(SecondReaders, OnTwoHostsAreOnTheOtherOne) {
  EXPECT_THAT(second_readers({"a", "a", "b", "b"}), ElementsAre(2, 3, 0, 1));
  EXPECT_THAT(second_readers({"a", "b", "a", "b"}), ElementsAre(1, 0, 3, 2));
}

TEST(SecondReaders, WhereOneHostHasMostRanksAreOnAnotherOneForAsManyAsThereAre) {
  EXPECT_THAT(second_readers({"a", "a", "a", "b"}), ElementsAre(3, 0, 1, 2));
}

// For many jobs: each rank reads for one, none for itself if it can be helped, and on another host wherever no host has
// more than half of all ranks.
TEST(SecondReaders, AreAnotherRankEachAndOnAnotherHostIfNoneHasMostOfThem) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 500; ++trial) {
    Hosts hosts(2 + random() % 40);
    auto const different = 1 + random() % 6;
    for (auto& host : hosts) host = fmt::format("host{}", random() % different);
    auto const second = second_readers(hosts);
    auto sorted = second;
    std::ranges::sort(sorted);
    std::size_t most = 0;
    for (auto const& host : hosts) most = std::max(most, static_cast<std::size_t>(std::ranges::count(hosts, host)));
    for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
      EXPECT_EQ(sorted[rank], static_cast<int>(rank));
      EXPECT_NE(second[rank], static_cast<int>(rank));
      if (2 * most > hosts.size()) continue;
      EXPECT_NE(hosts[static_cast<std::size_t>(second[rank])], hosts[rank]);
    }
  }
}

}  // namespace
}  // namespace rankslice::test
