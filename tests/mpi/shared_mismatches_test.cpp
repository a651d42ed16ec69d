// What each rank found becomes what all ranks know.

#include "verify/shared_mismatches.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/job_fixture.hpp"

namespace rankslice::test {
namespace {

class SharedMismatches : public JobTest {
 protected:
  static VerifyReport report_of(std::size_t mismatches) {
    VerifyReport report;
    for (std::size_t i = 0; i < mismatches; ++i) {
      report.mismatches.push_back({.tensor = fmt::format("t{}", i),
                                   .expert = static_cast<std::int64_t>(i),
                                   .rank = world().rank(),
                                   .what = fmt::format("problem {}", i)});
    }
    return report;
  }
  static std::uint64_t rank() { return static_cast<std::uint64_t>(world().rank()); }
  static std::uint64_t ranks() { return static_cast<std::uint64_t>(world().size()); }
};

TEST_F(SharedMismatches, AreThoseOfAllRanksByRank) {
  auto report = report_of(rank());  // none, one, two, …
  share_mismatches(report, world());
  ASSERT_EQ(report.mismatches.size(), ranks() * (ranks() - 1) / 2);
  EXPECT_EQ(report.unlisted, 0U);
  auto next = report.mismatches.begin();
  for (int rank = 0; rank < world().size(); ++rank) {
    for (int i = 0; i < rank; ++i, ++next) {
      EXPECT_EQ(next->tensor, fmt::format("t{}", i));
      EXPECT_EQ(next->expert, i);
      EXPECT_EQ(next->rank, rank);
      EXPECT_EQ(next->what, fmt::format("problem {}", i));
    }
  }
}

TEST_F(SharedMismatches, AreTheFirstThousandOfARankAndTheOthersAreCounted) {
  if (world().size() == 1) GTEST_SKIP() << "one rank shares nothing";
  auto const last = world().rank() == world().size() - 1;
  auto report = report_of(last ? 1200 : 1000);
  share_mismatches(report, world());
  EXPECT_EQ(report.mismatches.size(), ranks() * 1000);
  EXPECT_EQ(report.unlisted, 200U);
  EXPECT_EQ(report.mismatches.back().what, "problem 999");
}

TEST_F(SharedMismatches, OfOneRankAloneAreAllListed) {
  if (world().size() > 1) GTEST_SKIP() << "is about one rank";
  auto report = report_of(1200);
  share_mismatches(report, world());
  EXPECT_EQ(report.mismatches.size(), 1200U);
}

}  // namespace
}  // namespace rankslice::test
