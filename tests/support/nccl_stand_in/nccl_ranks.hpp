#pragma once

// Ranks as threads, each with an NCCL communicator over the stand-in.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "rankslice/nccl.hpp"

#include "support/communicator_conformance.hpp"
#include "support/nccl_stand_in/nccl_stand_in.hpp"
#include "support/thread_world.hpp"

namespace rankslice::test {

/// A rank with the GPU of its number.
inline StandInRank own_gpu(Communicator const& base) { return {.gpus = {base.rank()}}; }

using MakeRank = std::function<StandInRank(Communicator const&)>;

/// Runs it on NCCL's communicator of each rank, with the stand-in as `make_rank` says; nothing is misused or left.
inline void run_nccl_ranks(int ranks, RankMain const& rank_main, NcclOptions const& options = {},
                           MakeRank const& make_rank = own_gpu) {
  reset_stand_in();
  run_ranks(ranks, [&](Communicator& base) {
    be_stand_in_rank(make_rank(base));
    rank_main(*make_nccl_communicator(base, options));
  });
  EXPECT_THAT(stand_in_misuse(), testing::IsEmpty());
  EXPECT_THAT(stand_in_counts().aborts, testing::IsEmpty());
}

}  // namespace rankslice::test
