// The NCCL communicator over a stand-in for NCCL (support/nccl_stand_in): its control flow, never a GPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/nccl.hpp"

#include "support/communicator_conformance.hpp"
#include "support/nccl_stand_in/nccl_ranks.hpp"
#include "support/thread_world.hpp"

namespace rankslice {
namespace {

using namespace std::chrono_literals;
using test::be_stand_in_rank;
using test::exceptions_of_ranks;
using test::MakeRank;
using test::own_gpu;
using test::reset_stand_in;
using test::run_nccl_ranks;
using test::run_ranks;
using test::stand_in_counts;
using test::stand_in_misuse;
using test::StandInRank;
using test::ThreadWorld;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

Implementation over_stand_in(std::string const& name, int ranks, NcclOptions const& options) {
  return {.name = name + std::to_string(ranks),
          .run = [=](RankMain const& rank_main) { run_nccl_ranks(ranks, rank_main, options); }};
}

Implementation part_over_stand_in(int ranks) {
  return {.name = "Part" + std::to_string(ranks), .run = [=](RankMain const& rank_main) {
            run_nccl_ranks(ranks, [&](Communicator& world) { rank_main(*world.split(world.rank() % 2)); });
          }};
}

std::vector<Implementation> implementations() {
  std::vector<Implementation> all;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    all.push_back(over_stand_in("World", ranks, {}));
    all.push_back(over_stand_in("SmallPieces", ranks, {.staging_bytes = 64 * 1024}));
  }
  all.push_back(part_over_stand_in(4));
  return all;
}

INSTANTIATE_TEST_SUITE_P(NcclStandIn, CommunicatorConformance, testing::ValuesIn(implementations()),
                         [](auto const& suite) { return suite.param.name; });

/// What each rank's error says of itself.
struct Failed {
  ExitCode code = ExitCode::done;
  int rank = -1;
  std::string message;
};

/// Every rank's failure, by rank, of a run that fails on every one of them.
std::vector<Failed> failures(int ranks, RankMain const& rank_main, MakeRank const& make_rank,
                             ThreadWorld const& world = {}, NcclOptions const& options = {}) {
  reset_stand_in();
  auto const thrown = exceptions_of_ranks(
      ranks,
      [&](Communicator& base) {
        be_stand_in_rank(make_rank(base));
        rank_main(*make_nccl_communicator(base, options));
      },
      world);
  std::vector<Failed> failed;
  for (auto const& one : thrown) {
    try {
      if (one) std::rethrow_exception(one);
      failed.emplace_back();
    } catch (Error const& error) {
      failed.push_back({error.code, error.rank, error.what()});
    }
  }
  EXPECT_THAT(stand_in_misuse(), IsEmpty());
  return failed;
}

void reduce_twice(Communicator& world) {
  std::vector<std::uint64_t> values{1};
  world.all_reduce(values, Reduce::sum);
  world.all_reduce(values, Reduce::sum);
}

TEST(NcclCommunicator, IsWhatItSaysAndTakesItsRanksFromItsBase) {
  run_nccl_ranks(3, [](Communicator& world) {
    EXPECT_EQ(world.kind(), "nccl");
    EXPECT_EQ(world.size(), 3);
    EXPECT_TRUE(world.takes_device_memory());
    EXPECT_EQ(world.split(0)->kind(), "nccl");
  });
  EXPECT_EQ(stand_in_counts().destroyed, 6);  // the world's and the part's, on 3 ranks, and none was aborted
}

TEST(NcclCommunicator, WaitsForASlowStart) {
  run_nccl_ranks(2, reduce_twice, {}, [](Communicator const& base) {
    return StandInRank{.gpus = {base.rank()}, .init_polls = 100 * base.rank()};
  });
  EXPECT_EQ(stand_in_counts().operations, 4);
}

TEST(NcclCommunicator, GivesUpAStartThatNeverEndsAndLeavesTheRanksTheirBase) {
  reset_stand_in();
  run_ranks(2, [](Communicator& base) {
    be_stand_in_rank({.gpus = {base.rank()}, .init_never_ends = base.rank() == 1});
    EXPECT_THAT([&] { std::ignore = make_nccl_communicator(base, {.start_timeout = 300ms}); },
                testing::ThrowsMessage<DeviceError>(AllOf(HasSubstr("rank 1 (host "), HasSubstr("within 0.3 s"))));
    barrier(base);
  });
  EXPECT_THAT(stand_in_misuse(), IsEmpty());
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

TEST(NcclCommunicator, TellsWhyItDidNotStart) {
  auto const failed = failures(2, reduce_twice, [](Communicator const& base) {
    return StandInRank{.gpus = {base.rank()}, .init_error = base.rank() == 1 ? ncclInternalError : ncclSuccess};
  });
  for (auto const& one : failed) {
    EXPECT_EQ(one.code, ExitCode::unavailable);
    EXPECT_EQ(one.rank, 1);
    EXPECT_THAT(one.message, AllOf(HasSubstr("rank 1 (host "),
                                   HasSubstr("GPU 0): NCCL: internal error: the stand-in was told to fail")));
  }
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

TEST(NcclCommunicator, ASystemErrorIsThisRanksOwnOnlyWhileItStarts) {
  auto const system_error = [](Communicator const& base) {
    return StandInRank{.gpus = {base.rank()}, .init_error = base.rank() == 1 ? ncclSystemError : ncclRemoteError};
  };
  for (auto const& one : failures(2, reduce_twice, system_error)) EXPECT_EQ(one.rank, 1);
  auto const later = failures(2, reduce_twice, [](Communicator const& base) {
    return StandInRank{.gpus = {base.rank()}, .fails_at = 1, .failure = ncclSystemError};
  });
  for (auto const& one : later) EXPECT_EQ(one.code, ExitCode::timeout);
}

TEST(NcclCommunicator, EveryRankAbortsOnceAfterAnErrorThatComesLater) {
  for (auto const failing : {0, 1, 2}) {
    auto const failed = failures(
        3,
        [](Communicator& world) {
          reduce_twice(world);
          FAIL() << "the second reduction ended";
        },
        [=](Communicator const& base) {
          return StandInRank{.gpus = {base.rank()}, .fails_at = base.rank() == failing ? 1 : -1};
        });
    for (int rank = 0; rank < 3; ++rank) {
      auto const& one = failed.at(static_cast<std::size_t>(rank));
      EXPECT_EQ(one.code, rank == failing ? ExitCode::unavailable : ExitCode::timeout);
      EXPECT_THAT(one.message, HasSubstr(rank == failing ? "NCCL: internal error" : "NCCL: remote process exited"));
      EXPECT_THAT(one.message, HasSubstr("rank " + std::to_string(rank) + " (host "));
    }
    EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1), Pair(2, 1)));
  }
}

TEST(NcclCommunicator, GivesUpAnOperationThatNeverEndsAtTheDeadline) {
  ThreadWorld world;
  world.change = [](Collectives& functions) { functions.timeout = 300ms; };
  auto const failed = failures(
      2,
      [](Communicator& comm) {
        reduce_twice(comm);
        FAIL() << "the second reduction ended";
      },
      [](Communicator const& base) { return StandInRank{.gpus = {base.rank()}, .lost_from = 1}; }, world);
  EXPECT_EQ(failed.at(0).code, ExitCode::timeout);
  EXPECT_EQ(failed.at(1).code, ExitCode::timeout);
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

TEST(NcclCommunicator, GivesUpAtTheDeadlineWhenAnotherRankNeverComes) {
  ThreadWorld world;
  world.change = [](Collectives& functions) { functions.timeout = 300ms; };
  auto const failed = failures(
      2,
      [](Communicator& comm) {
        if (comm.rank() == 1) throw CommError(ExitCode::io, "alone");  // and its end waits for nobody
        reduce_twice(comm);
      },
      own_gpu, world);
  EXPECT_EQ(failed.at(0).code, ExitCode::timeout);
  EXPECT_EQ(failed.at(1).message, "alone");
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

TEST(NcclCommunicator, EveryCallAfterAFailureThrowsItAgain) {
  auto const failed = failures(
      2,
      [](Communicator& world) {
        std::vector<std::byte> bytes(1);
        auto const first = [&] {
          try {
            reduce_twice(world);
          } catch (CommError const& error) {
            return std::string(error.what());
          }
          return std::string();
        }();
        auto const other = 1 - world.rank();
        auto const again = testing::ThrowsMessage<CommError>(testing::Eq(first));
        EXPECT_THAT([&] { world.broadcast(bytes, 0); }, again);
        EXPECT_THAT([&] { std::ignore = world.start_send(bytes, other); }, again);
        EXPECT_THAT([&] { std::ignore = world.start_receive(bytes, other); }, again);
        EXPECT_THAT([&] { std::ignore = world.gather(bytes, 0); }, again);
        EXPECT_THAT([&] { std::ignore = world.split(0); }, again);
        EXPECT_THAT([&] { std::ignore = world.agree({}); }, again);
        EXPECT_THAT([&] { world.progress(); }, again);
        EXPECT_THAT([&] { world.wait_until([] { return true; }); }, again);
      },
      [](Communicator const& base) { return StandInRank{.gpus = {base.rank()}, .fails_at = 1}; });
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

TEST(NcclCommunicator, ATransferThatNobodyWaitedForDoesNotEndTheProgramWhenItFails) {
  auto const failed = failures(
      2,
      [](Communicator& world) {
        std::vector<std::byte> bytes(100);
        if (world.rank() == 0) std::ignore = world.start_send(bytes, 1);
        if (world.rank() == 1) std::ignore = world.start_receive(bytes, 0);
        std::ignore = world.agree({});
      },
      [](Communicator const& base) { return StandInRank{.gpus = {base.rank()}, .fails_at = 0}; });
  for (auto const& one : failed) EXPECT_THAT(one.message, HasSubstr("NCCL: "));
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

TEST(NcclCommunicator, EndsInPeaceAfterAFailureThatTheRanksAgreedOn) {
  auto const failed = failures(
      2,
      [](Communicator& world) {
        on_every_rank(world, [&] {
          if (world.rank() == 1) throw IoError(ExitCode::io, "no space left");
        });
      },
      own_gpu);
  for (auto const& one : failed) EXPECT_EQ(one.message, "no space left");
  EXPECT_EQ(stand_in_counts().destroyed, 2);
  EXPECT_THAT(stand_in_counts().aborts, IsEmpty());
}

TEST(NcclCommunicator, TellsTheOthersBeforeItAbortsWhatIsOnTheGpu) {
  ThreadWorld world;
  std::atomic<int> told = 0;
  world.change = [&](Collectives& functions) {
    functions.abort = [&, rank = functions.rank](ExitCode, std::string const&) {
      EXPECT_FALSE(stand_in_counts().aborts.contains(rank));
      ++told;
    };
  };
  std::ignore = failures(
      2, reduce_twice, [](Communicator const& base) { return StandInRank{.gpus = {base.rank()}, .fails_at = 1}; },
      world);
  EXPECT_GT(told, 0);
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

TEST(NcclCommunicator, LeavesBehindWhatAnAbortThatNeverReturnsStillUses) {
  reset_stand_in();
  auto const thrown = exceptions_of_ranks(2, [](Communicator& base) {
    be_stand_in_rank({.gpus = {base.rank()}, .fails_at = 1, .abort_never_returns = base.rank() == 0});
    reduce_twice(*make_nccl_communicator(base));
  });
  for (auto const& one : thrown) EXPECT_NE(one, nullptr);
  EXPECT_THAT(stand_in_misuse(),
              UnorderedElementsAre("a stream was not destroyed", "an event was not destroyed", "memory was not freed"));
}

TEST(NcclCommunicator, AQuestionAfterMemoryThatFailsIsNoHostMemory) {
  auto const failed = failures(
      1, [](Communicator& world) { reduce_twice(world); },
      [](Communicator const& base) {
        return StandInRank{.gpus = {base.rank()}, .pointer_error = cudaErrorIllegalAddress};
      });
  EXPECT_EQ(failed.at(0).code, ExitCode::unavailable);
  EXPECT_THAT(failed.at(0).message, HasSubstr("rank 0 (host "));
  EXPECT_EQ(stand_in_counts().operations, 0);
}

TEST(NcclCommunicator, AbortsWhenItsUserDoes) {
  auto const failed = failures(
      2,
      [](Communicator& world) {
        barrier(world);
        world.abort(ExitCode::io, "enough");
      },
      own_gpu);
  for (auto const& one : failed) {
    EXPECT_EQ(one.code, ExitCode::io);
    EXPECT_EQ(one.message, "enough");
  }
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 1), Pair(1, 1)));
}

/// All ranks are refused alike, before NCCL starts.
void expect_refused(MakeRank const& make_rank, int rank, testing::Matcher<std::string> const& message,
                    NcclOptions const& options = {}) {
  auto const failed = failures(
      3, [](Communicator&) { FAIL() << "it started"; }, make_rank, {}, options);
  for (auto const& one : failed) {
    EXPECT_EQ(one.code, ExitCode::unavailable);
    EXPECT_EQ(one.rank, rank);
    EXPECT_THAT(one.message, message);
  }
  EXPECT_THAT(stand_in_counts().aborts, IsEmpty());
  EXPECT_EQ(stand_in_counts().destroyed, 0);
}

TEST(NcclCommunicator, RefusesARankWithoutADriver) {
  expect_refused(
      [](Communicator const& base) {
        return StandInRank{.gpus = {base.rank()}, .driver = base.rank() == 2 ? 0 : CUDART_VERSION};
      },
      2, AllOf(HasSubstr("rank 2 (host "), HasSubstr("there is no NVIDIA driver")));
}

TEST(NcclCommunicator, RefusesADriverThatIsTooOld) {
  expect_refused([](Communicator const& base) { return StandInRank{.gpus = {base.rank()}, .driver = 12040}; }, 0,
                 HasSubstr("the NVIDIA driver is for CUDA 12.4, and this program"));
}

TEST(NcclCommunicator, RefusesARankThatSeesNoGpu) {
  expect_refused([](Communicator const& base) { return base.rank() == 1 ? StandInRank{.gpus = {}} : own_gpu(base); }, 1,
                 HasSubstr("CUDA_VISIBLE_DEVICES"));
}

TEST(NcclCommunicator, RefusesAGpuThatIsNotThere) {
  expect_refused(own_gpu, 0, HasSubstr("GPU 1 was asked for, and 1 are visible to it"), {.device = 1});
}

TEST(NcclCommunicator, RefusesAGpuOfTwoRanks) {
  expect_refused([](Communicator const& base) { return StandInRank{.gpus = {base.rank() % 2}}; }, 0,
                 AllOf(HasSubstr("ranks 0 and 2 (host "), HasSubstr("GPU-00000000-0000-0000-0000-000000000000")));
}

TEST(NcclCommunicator, RefusesDifferentVersionsOfNccl) {
  expect_refused(
      [](Communicator const& base) {
        return StandInRank{.gpus = {base.rank()}, .nccl_version = NCCL_VERSION_CODE + (base.rank() == 1 ? 1 : 0)};
      },
      1, HasSubstr("rank 1 (host "));
}

TEST(NcclCommunicator, SaysBeforehandWhyThereWouldBeNone) {
  reset_stand_in();
  run_ranks(2, [](Communicator& base) {
    be_stand_in_rank(own_gpu(base));
    EXPECT_EQ(why_no_nccl(base), "");
    be_stand_in_rank({.gpus = {7}});
    EXPECT_THAT(why_no_nccl(base), HasSubstr("ranks 0 and 1"));
  });
}

TEST(NcclCommunicator, RefusesToStageNothing) {
  reset_stand_in();
  run_ranks(1,
            [](Communicator& base) { EXPECT_THROW(make_nccl_communicator(base, {.staging_bytes = 0}), UsageError); });
}

TEST(NcclCommunicator, AFailureOfASplitEndsTheWholeOnceOnEveryRank) {
  auto const failed = failures(
      2,
      [](Communicator& world) {
        auto const part = world.split(0);
        reduce_twice(*part);
      },
      [](Communicator const& base) { return StandInRank{.gpus = {base.rank()}, .fails_at = 1}; });
  for (auto const& one : failed) EXPECT_THAT(one.message, HasSubstr("NCCL: "));
  EXPECT_THAT(stand_in_counts().aborts, ElementsAre(Pair(0, 2), Pair(1, 2)));
}

}  // namespace
}  // namespace rankslice
