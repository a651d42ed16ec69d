#include "comm/lineage.hpp"

#include <gtest/gtest.h>

namespace rankslice {
namespace {

Outcome const kFailure{.code = ExitCode::io, .message = "x", .file = {}, .tensor = {}};

TEST(Lineage, AFailureTakesThePartsOfWhoAgreedOnItToo) {
  Lineage world;
  auto const part = world.part();
  auto const part_of_part = part.part();
  EXPECT_FALSE(part.failed_together());
  world.note_agreement(kFailure);
  EXPECT_TRUE(world.failed_together());
  EXPECT_TRUE(part.failed_together());
  EXPECT_TRUE(part_of_part.failed_together());
  EXPECT_TRUE(world.part().failed_together());
}

TEST(Lineage, AFailureInOnePartLeavesTheWholeAndOtherPartsAlone) {
  Lineage const world;
  auto part = world.part();
  auto const other = world.part();
  part.note_agreement(kFailure);
  EXPECT_TRUE(part.failed_together());
  EXPECT_FALSE(world.failed_together());
  EXPECT_FALSE(other.failed_together());
}

TEST(Lineage, OnlyTheLastAgreementCountsWhoeverMadeIt) {
  Lineage world;
  auto part = world.part();
  world.note_agreement(kFailure);
  part.note_agreement({});
  EXPECT_FALSE(world.failed_together());
  EXPECT_FALSE(part.failed_together());
}

}  // namespace
}  // namespace rankslice
