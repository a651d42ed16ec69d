#include "rankslice/mesh.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {
namespace {

std::vector<Range> all_parts(std::uint64_t count, std::uint64_t parts) {
  std::vector<Range> ranges;
  for (std::uint64_t i = 0; i < parts; ++i) ranges.push_back(balanced_part(count, parts, i));
  return ranges;
}

TEST(BalancedPart, Rule9_GivesTheRangesOfTheRule) {
  EXPECT_EQ(all_parts(8, 3), (std::vector<Range>{{0, 3}, {3, 6}, {6, 8}}));
  EXPECT_EQ(all_parts(10, 4), (std::vector<Range>{{0, 3}, {3, 6}, {6, 8}, {8, 10}}));
  EXPECT_EQ(all_parts(3, 4), (std::vector<Range>{{0, 1}, {1, 2}, {2, 3}, {3, 3}}));
  EXPECT_EQ(all_parts(128, 6), (std::vector<Range>{{0, 22}, {22, 44}, {44, 65}, {65, 86}, {86, 107}, {107, 128}}));
}

TEST(BalancedPart, Rule10_OnePartIsEverything) {
  EXPECT_EQ(balanced_part(256, 1, 0), (Range{0, 256}));
  EXPECT_EQ(balanced_part(0, 1, 0), (Range{0, 0}));
}

// Deal `count` experts like cards: how many does each of `parts` ranks get?
std::vector<std::uint64_t> deal(std::uint64_t count, std::uint64_t parts) {
  std::vector<std::uint64_t> sizes(parts, 0);
  for (std::uint64_t expert = 0; expert < count; ++expert) ++sizes[expert % parts];
  return sizes;
}

TEST(BalancedPart, Rule9_EveryExpertHasExactlyOneOwnerForOneTo4096Parts) {
  for (std::uint64_t const count : {1U, 3U, 8U, 60U, 128U, 256U, 512U}) {
    for (std::uint64_t parts = 1; parts <= 4096; ++parts) {
      std::uint64_t next = 0;
      auto const sizes = deal(count, parts);
      for (std::uint64_t i = 0; i < parts; ++i) {
        auto const part = balanced_part(count, parts, i);
        if (part.begin != next || part.end != next + sizes[i]) {
          FAIL() << "part " << i << " of " << parts << " of " << count << " is [" << part.begin << ", " << part.end
                 << "), expected [" << next << ", " << next + sizes[i] << ")";
        }
        next = part.end;
      }
      ASSERT_EQ(next, count) << parts;
    }
  }
}

TEST(BalancedPart, SharesCountsOfBytesBeyond32Bits) {
  auto const count = std::uint64_t{1} << 62;
  EXPECT_EQ(balanced_part(count + 1, 4, 0), (Range{0, count / 4 + 1}));
  EXPECT_EQ(balanced_part(count + 1, 4, 3), (Range{count / 4 * 3 + 1, count + 1}));
}

TEST(PartWith, Rules9And10_IsThePartWhoseRangeHasTheItem) {
  for (std::uint64_t count : {0U, 1U, 2U, 5U, 8U, 60U, 128U}) {
    for (std::uint64_t parts : {1U, 2U, 3U, 7U, 8U, 64U, 200U}) {
      for (std::uint64_t index = 0; index < parts; ++index) {
        auto const part = balanced_part(count, parts, index);
        for (auto item = part.begin; item < part.end; ++item) {
          EXPECT_EQ(part_with(item, count, parts), index) << item << " of " << count << " in " << parts;
        }
      }
    }
  }
  // 10 experts of 4 ranks: 3, 3, 2 and 2
  EXPECT_EQ(part_with(2, 10, 4), 0U);
  EXPECT_EQ(part_with(3, 10, 4), 1U);
  EXPECT_EQ(part_with(7, 10, 4), 2U);
  EXPECT_EQ(part_with(8, 10, 4), 3U);
}

TEST(Mesh, Rule13_EpIsTheFastestDimensionThenEpShard) {
  Mesh const mesh{.ep_replicate = 2, .ep_shard = 3, .ep = 4};
  EXPECT_EQ(mesh.ranks(), 24);
  EXPECT_EQ(mesh.coordinate(0), (MeshCoordinate{.ep_replicate = 0, .ep_shard = 0, .ep = 0}));
  EXPECT_EQ(mesh.coordinate(1), (MeshCoordinate{.ep_replicate = 0, .ep_shard = 0, .ep = 1}));
  EXPECT_EQ(mesh.coordinate(4), (MeshCoordinate{.ep_replicate = 0, .ep_shard = 1, .ep = 0}));
  EXPECT_EQ(mesh.coordinate(11), (MeshCoordinate{.ep_replicate = 0, .ep_shard = 2, .ep = 3}));
  EXPECT_EQ(mesh.coordinate(12), (MeshCoordinate{.ep_replicate = 1, .ep_shard = 0, .ep = 0}));
  EXPECT_EQ(mesh.coordinate(23), (MeshCoordinate{.ep_replicate = 1, .ep_shard = 2, .ep = 3}));
}

TEST(Mesh, EveryRankHasItsOwnCoordinateAndBack) {
  for (auto const& mesh : {Mesh{1, 1, 1}, Mesh{1, 1, 7}, Mesh{4, 1, 2}, Mesh{3, 2, 5}, Mesh{64, 1, 64}}) {
    std::vector<MeshCoordinate> seen;
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      seen.push_back(mesh.coordinate(rank));
      EXPECT_EQ(mesh.rank(seen.back()), rank);
    }
    EXPECT_TRUE(std::ranges::is_sorted(seen));  // compares (ep_replicate, ep_shard, ep), `ep` last
    EXPECT_EQ(std::ranges::adjacent_find(seen), seen.end());
  }
}

TEST(Mesh, RanksOutsideItAndMeshesWithoutAnyHaveNoCoordinate) {
  for (auto const rank : {-1, 6, 7}) EXPECT_THROW((void)(Mesh{1, 2, 3}.coordinate(rank)), PlanError) << rank;
  for (auto const& mesh : {Mesh{0, 1, 1}, Mesh{1, 0, 1}, Mesh{1, 1, 0}, Mesh{1, -1, -1}, Mesh{65536, 65536, 1}}) {
    EXPECT_THROW((void)mesh.coordinate(0), PlanError);
  }
}

TEST(Mesh, Rule10_WidthDefaultsToAllRanks) {
  EXPECT_EQ(make_mesh(6), (Mesh{.ep_replicate = 1, .ep_shard = 1, .ep = 6}));
  EXPECT_EQ(make_mesh(6, 0, 2), (Mesh{.ep_replicate = 1, .ep_shard = 2, .ep = 3}));
}

TEST(Mesh, RanksBeyondTheWidthAreReplicas) {
  EXPECT_EQ(make_mesh(6, 2), (Mesh{.ep_replicate = 3, .ep_shard = 1, .ep = 2}));
  EXPECT_EQ(make_mesh(24, 4, 3), (Mesh{.ep_replicate = 2, .ep_shard = 3, .ep = 4}));
}

TEST(Mesh, RanksThatFillNoMeshAreRefused) {
  EXPECT_THROW((void)make_mesh(0), PlanError);
  EXPECT_THROW((void)make_mesh(-1), PlanError);
  EXPECT_THROW((void)make_mesh(4, -2), PlanError);
  EXPECT_THROW((void)make_mesh(4, 2, 0), PlanError);
  EXPECT_THROW((void)make_mesh(4, 3), PlanError);
  EXPECT_THROW((void)make_mesh(4, 8), PlanError);
  EXPECT_THROW((void)make_mesh(4, 2, 4), PlanError);
  EXPECT_THROW((void)make_mesh(4, 0, 3), PlanError);
  EXPECT_THROW((void)make_mesh(2, 0, 3), PlanError);
}

TEST(Mesh, WidthsWhoseProductOverflowsAreRefused) {
  EXPECT_THROW((void)make_mesh(4, 65536, 65536), PlanError);
  EXPECT_THROW((void)make_mesh(4, std::numeric_limits<int>::max(), 2), PlanError);
}

}  // namespace
}  // namespace rankslice
