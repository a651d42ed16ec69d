// Which blocks of its files a thread reads for what it will be asked for, and in which order.

#include "io/block_plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr BlockLimits kSmall{.alignment = 16, .most_gap = 32, .bytes = 64};
constexpr std::uint64_t kFileBytes = 2000;
constexpr std::uint32_t kFiles = 3;

TEST(BlockPlan, ExtentsThatTouchAreReadTogetherInBlocksOfTheSameSize) {
  auto const plan = plan_blocks({{0, {0, 50}}, {0, {50, 60}}, {0, {60, 150}}}, kSmall);
  EXPECT_THAT(plan.blocks, ElementsAre(PlannedBlock{0, {0, 64}, 64}, PlannedBlock{0, {64, 128}, 64},
                                       PlannedBlock{0, {128, 160}, 22}));
  EXPECT_EQ(plan.wanted, 150U);
  EXPECT_EQ(plan.read, 160U);
}

TEST(BlockPlan, ASmallGapIsReadAndALargeOneIsNot) {
  EXPECT_THAT(plan_blocks({{0, {0, 16}}, {0, {48, 64}}}, kSmall).blocks, ElementsAre(PlannedBlock{0, {0, 64}, 32}));
  EXPECT_THAT(plan_blocks({{0, {0, 16}}, {0, {64, 80}}}, kSmall).blocks,
              ElementsAre(PlannedBlock{0, {0, 16}, 16}, PlannedBlock{0, {64, 80}, 16}));
}

TEST(BlockPlan, AUnitThatTwoExtentsShareIsReadOnce) {
  auto const plan = plan_blocks({{0, {0, 20}}, {0, {24, 40}}}, {.alignment = 16, .most_gap = 0, .bytes = 64});
  EXPECT_THAT(plan.blocks, ElementsAre(PlannedBlock{0, {0, 48}, 36}));
}

TEST(BlockPlan, FollowsTheOrderOfTheRequestsNotThatOfTheFile) {
  // Block scales before their weights, two tensors: each of the weights comes after its scales.
  auto const plan = plan_blocks({{0, {0, 8}}, {0, {160, 220}}, {0, {8, 16}}, {0, {224, 288}}, {1, {0, 4}}}, kSmall);
  EXPECT_THAT(plan.blocks, ElementsAre(PlannedBlock{0, {0, 16}, 16}, PlannedBlock{0, {160, 224}, 60},
                                       PlannedBlock{0, {224, 288}, 64}, PlannedBlock{1, {0, 16}, 4}));
}

TEST(BlockPlan, CountsWhatIsAskedForTwiceTwiceAndWantsItOnce) {
  auto const plan = plan_blocks({{0, {0, 16}}, {0, {8, 16}}}, kSmall);
  EXPECT_THAT(plan.blocks, ElementsAre(PlannedBlock{0, {0, 16}, 24}));
  EXPECT_EQ(plan.wanted, 16U);
}

TEST(BlockPlan, OfNothingIsNothing) {
  EXPECT_THAT(plan_blocks({}, kSmall).blocks, IsEmpty());
  EXPECT_THAT(plan_blocks({{0, {7, 7}}}, kSmall).blocks, IsEmpty());
}

// ---- whatever the extents are ----

using Bits = std::vector<bool>;

/// Whether each byte of each file is in one of the ranges.
std::vector<Bits> bits_of(std::vector<Extent> const& extents) {
  std::vector<Bits> bits(kFiles, Bits(kFileBytes + 64));
  for (auto const& [file, bytes] : extents) {
    for (auto i = bytes.begin; i < bytes.end; ++i) bits[file][i] = true;
  }
  return bits;
}

Bits bits_of(std::vector<Range> const& ranges) {
  std::vector<Extent> extents;
  for (auto const& range : ranges) extents.push_back({0, range});
  return bits_of(extents).front();
}

std::vector<Extent> random_extents(std::mt19937_64& random) {
  std::vector<Extent> extents;
  for (auto count = random() % 30; count > 0; --count) {
    auto const begin = random() % kFileBytes;
    extents.push_back({static_cast<std::uint32_t>(random() % kFiles),
                       {begin, begin + random() % std::min<std::uint64_t>(200, kFileBytes - begin)}});
  }
  return extents;
}

TEST(BlockPlan, HasEveryWantedByteInOneAlignedBlockAndNoByteTwice) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 500; ++trial) {
    auto const extents = random_extents(random);
    BlockLimits const limits{.alignment = 1U << random() % 5, .most_gap = random() % 40, .bytes = 64};
    auto const plan = plan_blocks(extents, limits);
    auto const wanted = bits_of(extents);

    std::vector<Bits> read(kFiles, Bits(kFileBytes + 64));
    for (auto const& [file, bytes, requested] : plan.blocks) {
      EXPECT_EQ(bytes.begin % limits.alignment + bytes.end % limits.alignment, 0U);
      EXPECT_LE(bytes.size(), limits.bytes);
      std::uint64_t asked = 0;
      for (auto const& extent : extents) {
        if (extent.file == file) asked += intersection(extent.bytes, bytes).size();
      }
      EXPECT_EQ(requested, asked);
      EXPECT_GT(requested, 0U) << "nobody needs it";
      for (auto i = bytes.begin; i < bytes.end; ++i) {
        EXPECT_FALSE(read[file][i]) << "twice";
        read[file][i] = true;
      }
    }
    std::uint64_t bytes_wanted = 0;
    for (std::uint32_t file = 0; file < kFiles; ++file) {
      for (std::uint64_t i = 0; i < kFileBytes; ++i) {
        EXPECT_LE(wanted[file][i], read[file][i]) << "file " << file << ", byte " << i;
        bytes_wanted += wanted[file][i] ? 1U : 0U;
      }
    }
    EXPECT_EQ(plan.wanted, bytes_wanted);
  }
}

TEST(Runs, AreWhatIsReadOfEachFileWithGapsBetweenThem) {
  auto const runs = runs_by_file({{2, {40, 50}}, {0, {5, 9}}, {2, {10, 40}}, {2, {60, 61}}, {2, {12, 20}}}, 3);
  EXPECT_THAT(runs, ElementsAre(ElementsAre(Range{5, 9}), IsEmpty(), ElementsAre(Range{10, 50}, Range{60, 61})));
}

TEST(Runs, AreDividedIntoWhatIsInPartsOfTheirFilesAndWhatIsNot) {
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 300; ++trial) {
    auto const extents = random_extents(random);
    auto const runs = runs_by_file(extents, kFiles);
    auto const parts = runs_by_file(random_extents(random), kFiles);
    auto const inside = bits_of(within(extents, parts));
    for (std::uint32_t file = 0; file < kFiles; ++file) {
      auto const of_runs = bits_of(runs[file]), of_parts = bits_of(parts[file]);
      auto const outside = bits_of(without(runs[file], parts[file]));
      for (std::uint64_t i = 0; i < kFileBytes; ++i) {
        ASSERT_EQ(inside[file][i], of_runs[i] && of_parts[i]) << i;
        ASSERT_EQ(outside[i], of_runs[i] && !of_parts[i]) << i;
      }
    }
  }
}

TEST(Runs, WithinPartsKeepTheOrderOfTheRequests) {
  EXPECT_THAT(within({{0, {50, 90}}, {0, {0, 20}}}, {{{10, 60}, {80, 100}}}),
              ElementsAre(Extent{0, {50, 60}}, Extent{0, {80, 90}}, Extent{0, {10, 20}}));
}

}  // namespace
}  // namespace rankslice
