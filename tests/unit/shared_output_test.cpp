#include "shared_output.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <stdexcept>

#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;
using test::exceptions_of_ranks;
using test::run_ranks;
using test::TempDir;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::StartsWith;
using Kind = StagedOutput::Kind;

constexpr auto* kKey = "00112233aabbccdd";
constexpr int kRanks = 3;

class SharedOutputTest : public testing::Test {
 protected:
  std::vector<std::string> names_beside() const {
    std::vector<std::string> names;
    for (auto const& entry : fs::directory_iterator(dir_.path())) names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
  }

  std::function<void(Notice const&)> notices() {
    return [this](Notice const& notice) {
      std::lock_guard const lock(mutex_);
      notices_.push_back((notice.warning ? "warning: " : "") + notice.text);
    };
  }

  /// A run that records a segment, and then ends with this exception on rank 1.
  template <typename SomeError>
  void end_with(SomeError const& error, std::string const& key = kKey) {
    auto const thrown = exceptions_of_ranks(kRanks, [&](Communicator& world) {
      SharedOutput output(out_, Kind::folder, false, world, key, notices());
      output.fill([&] {
        output.record({{"a", {1, 0}}, {"b", {0, 2}}});
        on_every_rank(world, [&] {
          if (world.rank() == 1) throw error;
        });
      });
    });
    for (auto const& of_rank : thrown) EXPECT_THROW(std::rethrow_exception(of_rank), SomeError);
  }

  TempDir dir_;
  std::string out_ = dir_.file("OUT");
  std::string partial_ = dir_.file("OUT.partial-00112233aabbccdd");
  std::mutex mutex_;
  std::vector<std::string> notices_;
};

TEST_F(SharedOutputTest, WhatWasInterruptedIsThereForEveryRankOfTheNextRun) {
  end_with(Interrupted(ExitCode::terminated));
  EXPECT_THAT(notices_, ElementsAre(AllOf(StartsWith(partial_), HasSubstr("the same command goes on"))));
  run_ranks(kRanks + 1, [&](Communicator& world) {
    SharedOutput output(out_, Kind::folder, false, world, kKey);
    EXPECT_TRUE(output.taken_over());
    EXPECT_EQ(output.path(), partial_);
    EXPECT_THAT(output.recorded(), ElementsAre(Pair("a", ElementsAre(1, 0)), Pair("b", ElementsAre(0, 2))));
    output.fill([&] { output.publish(); });
  });
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(SharedOutputTest, ARunThatLostARankIsKeptToo) {
  end_with(CommError(ExitCode::timeout, "rank 2 did not answer"));
  EXPECT_TRUE(fs::exists(partial_));
}

TEST_F(SharedOutputTest, ARankLostWhileItIsTakenOverCostsNothing) {
  end_with(Interrupted());
  test::ThreadWorld world;
  world.change = [](Collectives& rank) {
    rank.broadcast = [](std::span<std::byte>, int) -> WaitFunction { throw std::runtime_error("rank 2 is gone"); };
  };
  for (auto const& of_rank : exceptions_of_ranks(
           kRanks, [&](Communicator& ranks) { SharedOutput(out_, Kind::folder, false, ranks, kKey); }, world)) {
    EXPECT_THROW(std::rethrow_exception(of_rank), CommError);
  }
  run_ranks(kRanks, [&](Communicator& ranks) {
    EXPECT_THAT(SharedOutput(out_, Kind::folder, false, ranks, kKey).recorded(), testing::SizeIs(2));
  });
}

TEST_F(SharedOutputTest, WhatAnEarlierRunLeftIsRemovedAfterAnErrorToo) {
  end_with(Interrupted());
  exceptions_of_ranks(kRanks, [&](Communicator& world) {
    SharedOutput output(out_, Kind::folder, false, world, kKey);
    output.fill([&] { on_every_rank(world, [] { throw VerifyError("differs"); }); });
  });
  EXPECT_THAT(names_beside(), IsEmpty());
}

TEST_F(SharedOutputTest, OneThatIsPublishedIsSaidToBeInPlaceWhenARankIsLostAfterwards) {
  exceptions_of_ranks(kRanks, [&](Communicator& world) {
    SharedOutput output(out_, Kind::folder, false, world, kKey, notices());
    output.fill([&] {
      output.record({{"a", {1}}});
      output.publish();
      throw CommError(ExitCode::timeout, "rank 2 did not answer");
    });
  });
  EXPECT_THAT(notices_, ElementsAre(out_ + " is in place"));
  EXPECT_THAT(names_beside(), ElementsAre("OUT"));
}

TEST_F(SharedOutputTest, WhatFailedForAnotherReasonIsRemoved) {
  end_with(IoError(ExitCode::io, "disk"));
  EXPECT_THAT(names_beside(), IsEmpty());
  end_with(VerifyError("differs"));
  EXPECT_THAT(names_beside(), IsEmpty());
  end_with(UnexpectedError("bug"));
  EXPECT_THAT(names_beside(), IsEmpty());
  EXPECT_THAT(notices_, IsEmpty());
}

TEST_F(SharedOutputTest, WithoutAKeyAnInterruptedRunLeavesNothing) {
  end_with(Interrupted(), "");
  EXPECT_THAT(names_beside(), IsEmpty());
  EXPECT_THAT(notices_, IsEmpty());
}

TEST_F(SharedOutputTest, WhereNothingIsCompleteNothingIsKept) {
  exceptions_of_ranks(kRanks, [&](Communicator& world) {
    SharedOutput output(out_, Kind::folder, false, world, kKey, notices());
    output.fill([&] { on_every_rank(world, [] { throw Interrupted(); }); });
  });
  EXPECT_THAT(names_beside(), IsEmpty());
  EXPECT_THAT(notices_, IsEmpty());
}

TEST_F(SharedOutputTest, ForgottenSegmentsAreForgottenByAllRanksAndByTheNextRun) {
  end_with(Interrupted());
  auto const only_b = ElementsAre(Pair("b", ElementsAre(0, 2)));
  exceptions_of_ranks(kRanks, [&](Communicator& world) {
    SharedOutput output(out_, Kind::folder, false, world, kKey);
    output.fill([&] {
      output.forget({"a", "never recorded"});
      EXPECT_THAT(output.recorded(), only_b);
      on_every_rank(world, [] { throw Interrupted(); });
    });
  });
  run_ranks(1, [&](Communicator& world) {
    EXPECT_THAT(SharedOutput(out_, Kind::folder, false, world, kKey).recorded(), only_b);
  });
}

TEST_F(SharedOutputTest, ARecordOfTheSameSegmentTakesTheOldOnesPlace) {
  end_with(Interrupted());
  exceptions_of_ranks(kRanks, [&](Communicator& world) {
    SharedOutput output(out_, Kind::folder, false, world, kKey);
    output.fill([&] {
      output.record({{"b", {7}}});
      on_every_rank(world, [] { throw Interrupted(); });
    });
  });
  run_ranks(2, [&](Communicator& world) {
    EXPECT_THAT(SharedOutput(out_, Kind::folder, false, world, kKey).recorded(),
                ElementsAre(Pair("a", ElementsAre(1, 0)), Pair("b", ElementsAre(7))));
  });
}

TEST_F(SharedOutputTest, LeftoversAreToldOnceAndOnlyWhereTheKeyIsKnown) {
  fs::create_directory(out_ + ".partial-node7-12");
  run_ranks(kRanks, [&](Communicator& world) { SharedOutput(out_, Kind::folder, false, world, "", notices()); });
  EXPECT_THAT(notices_, IsEmpty());
  run_ranks(kRanks, [&](Communicator& world) { SharedOutput(out_, Kind::folder, false, world, kKey, notices()); });
  EXPECT_THAT(notices_, ElementsAre(StartsWith("warning: " + out_ + ".partial-node7-12: belongs to a run")));
}

TEST_F(SharedOutputTest, ASecondRunOfTheKeyIsRefusedOnEveryRank) {
  StagedOutput const first(out_, Kind::folder, false, kKey);
  auto const thrown =
      exceptions_of_ranks(kRanks, [&](Communicator& world) { SharedOutput(out_, Kind::folder, false, world, kKey); });
  for (auto const& of_rank : thrown) {
    try {
      ASSERT_TRUE(of_rank);
      std::rethrow_exception(of_rank);
    } catch (IoError const& error) {
      EXPECT_EQ(error.code, ExitCode::cannot_create);
      EXPECT_EQ(error.rank, 0);
    }
  }
}

}  // namespace

}  // namespace rankslice
