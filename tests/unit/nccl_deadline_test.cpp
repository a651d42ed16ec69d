// The NCCL communicator, over a stand-in for NCCL, with ranks that meet over TCP: the base that knows who is missing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "rankslice/nccl.hpp"
#include "rankslice/tcp.hpp"

#include "device/cuda_wait.hpp"
#include "support/nccl_stand_in/nccl_stand_in.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::IsEmpty;

struct Ended {
  ExitCode code = ExitCode::done;
  std::string message;
};

/// How each of three ranks ended: rank 1 has `rank_1` for its main, and the others wait for it in a reduction.
std::vector<Ended> reduce_without_rank_1(std::chrono::milliseconds timeout,
                                         std::function<void(Communicator&)> const& rank_1) {
  test::reset_stand_in();
  test::TempDir const folder;
  std::vector<Ended> ended(3);
  auto const rank_main = [&](int rank) {
    try {
      auto const base = make_tcp_communicator(
          {.rank = rank, .size = 3, .rendezvous = "file:" + folder.file("meet"), .timeout = timeout});
      test::be_stand_in_rank({.gpus = {rank}});
      auto const world = make_nccl_communicator(*base);
      if (rank == 1) return rank_1(*world);
      std::vector<std::uint64_t> values{1};
      world->all_reduce(values, Reduce::sum);
    } catch (Error const& error) {
      ended[static_cast<std::size_t>(rank)] = {error.code, error.what()};
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < 3; ++rank) threads.emplace_back(rank_main, rank);
  }
  EXPECT_THAT(test::stand_in_misuse(), IsEmpty());
  return ended;
}

TEST(NcclDeadline, NamesTheRankThatDoesNotCome) {
  auto const ended = reduce_without_rank_1(1s, [](Communicator& world) {
    std::this_thread::sleep_for(4s);  // in a call that has nothing to do with its ranks
    std::vector<std::uint64_t> values{1};
    world.all_reduce(values, Reduce::sum);
  });
  for (auto const& one : ended) {
    EXPECT_EQ(one.code, ExitCode::timeout);
    EXPECT_THAT(one.message, HasSubstr("no answer from rank(s) 1 (host "));
  }
}

TEST(NcclDeadline, KnowsAtOnceThatARankHasLeft) {
  auto const ended = reduce_without_rank_1(std::chrono::milliseconds(1h), [](Communicator&) {
    throw IoError(ExitCode::io, "its disk is gone");  // not agreed
  });
  EXPECT_EQ(ended[1].message, "its disk is gone");
  for (auto const rank : {0U, 2U}) EXPECT_EQ(ended[rank].code, ExitCode::timeout);
}

TEST(GpuWait, EndsWithTheAnswerOrAtItsDeadline) {
  int asked = 0;
  auto const third_time = [&] { return ++asked < 3 ? cudaErrorNotReady : cudaErrorIllegalAddress; };
  EXPECT_EQ(wait_within(1h, third_time), cudaErrorIllegalAddress);
  EXPECT_EQ(wait_within(10ms, [] { return cudaErrorNotReady; }), cudaErrorNotReady);
}

}  // namespace
}  // namespace rankslice
