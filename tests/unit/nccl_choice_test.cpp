// What `--comm` makes of the ranks, over a stand-in for NCCL.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "cli/gpu_ranks.hpp"
#include "support/nccl_stand_in/nccl_stand_in.hpp"
#include "support/thread_world.hpp"

namespace rankslice::cli {
namespace {

using test::be_stand_in_rank;
using test::run_ranks;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

Options load_with(std::string const& comm) {
  Options options;
  options.command = "load";
  options.device = "auto";
  options.comm = comm;
  return options;
}

TEST(NcclChoice, AutoTakesNcclWhereEachRankHasAGpu) {
  test::reset_stand_in();
  run_ranks(2, [](Communicator& base) {
    be_stand_in_rank({.gpus = {base.rank()}});
    auto const ranks = connect_gpus(load_with("auto"), base);
    ASSERT_TRUE(ranks.world);
    EXPECT_EQ(ranks.world->kind(), "nccl");
    EXPECT_THAT(ranks.why_not, IsEmpty());
  });
  EXPECT_THAT(test::stand_in_misuse(), IsEmpty());
}

TEST(NcclChoice, AutoSaysWhyItDoesWithout) {
  test::reset_stand_in();
  run_ranks(2, [](Communicator& base) {
    be_stand_in_rank({.gpus = {7}});
    auto const ranks = connect_gpus(load_with("auto"), base);
    EXPECT_FALSE(ranks.world || ranks.failed);
    EXPECT_THAT(ranks.why_not, HasSubstr("have the same GPU"));
  });
}

TEST(NcclChoice, AutoDoesWithoutWhereNcclDoesNotStartAndOthersEnd) {
  for (auto const* const comm : {"auto", "nccl"}) {
    test::reset_stand_in();
    run_ranks(2, [&](Communicator& base) {
      be_stand_in_rank({.gpus = {base.rank()}, .init_error = base.rank() == 1 ? ncclSystemError : ncclSuccess});
      auto const cause = AllOf(HasSubstr("rank 1 (host "), HasSubstr("the stand-in was told to fail"));
      if (std::string(comm) == "nccl") {
        EXPECT_THAT([&] { std::ignore = connect_gpus(load_with(comm), base); },
                    testing::ThrowsMessage<DeviceError>(cause));
      } else {
        auto const ranks = connect_gpus(load_with(comm), base);
        EXPECT_FALSE(ranks.world);
        EXPECT_TRUE(ranks.failed);
        EXPECT_THAT(ranks.why_not, cause);
      }
      barrier(base);
    });
    EXPECT_THAT(test::stand_in_misuse(), IsEmpty());
  }
}

}  // namespace
}  // namespace rankslice::cli
