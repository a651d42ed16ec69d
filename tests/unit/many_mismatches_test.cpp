// What many ranks found is bounded as a whole.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/thread_world.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice {
namespace {

TEST(ManyMismatches, OfAllRanksAreListedUpToTenThousandByRankAndTheOthersAreCounted) {
  constexpr int kRanks = 12;
  std::vector<VerifyReport> reports(kRanks);
  test::run_ranks(kRanks, [&](Communicator& world) {
    auto& report = reports[static_cast<std::size_t>(world.rank())];
    for (int i = 0; i < 1100; ++i) {
      report.mismatches.push_back(
          {.tensor = "t", .expert = i, .rank = world.rank(), .what = fmt::format("problem {}", i)});
    }
    share_mismatches(report, world);
  });
  for (auto const& report : reports) {
    ASSERT_EQ(report.mismatches.size(), 10'000U);
    EXPECT_EQ(report.unlisted, 12U * 1100U - 10'000U);
    EXPECT_EQ(report.mismatches.back().rank, 9);
    EXPECT_EQ(report.mismatches.back().what, "problem 999");
  }
}

}  // namespace
}  // namespace rankslice
