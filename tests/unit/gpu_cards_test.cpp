#include "comm/gpu_cards.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "support/thread_world.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// Rank `gpu` of a host, with a GPU of its own and NCCL 2.30.7.
GpuCard card(std::string const& host, int gpu) {
  GpuCard made;
  made.host = host;
  made.gpu = "GPU-" + std::to_string(gpu);
  made.visible_gpus = 2;
  made.nccl_version = 23007;
  made.built_with = 22809;
  made.staging_bytes = 4096;
  return made;
}

std::vector<GpuCard> two_hosts_of_two() { return {card("a", 0), card("a", 1), card("b", 0), card("b", 1)}; }

TEST(GpuCards, RanksWithAGpuEachMayUseNccl) {
  EXPECT_FALSE(refuse_nccl(two_hosts_of_two()).has_value());
  EXPECT_FALSE(refuse_nccl(std::vector{card("a", 0)}).has_value());
}

struct Refused {
  std::string name;
  void (*change)(std::vector<GpuCard>& cards);
  int rank;
  std::vector<std::string> said;
};

void PrintTo(Refused const& refused, std::ostream* out) { *out << refused.name; }

class RefusedCards : public testing::TestWithParam<Refused> {};

TEST_P(RefusedCards, AreRefusedWithAdvice) {
  auto cards = two_hosts_of_two();
  GetParam().change(cards);
  auto const refusal = refuse_nccl(cards);
  ASSERT_TRUE(refusal.has_value());
  EXPECT_EQ(refusal->rank, GetParam().rank);
  for (auto const& text : GetParam().said) EXPECT_THAT(refusal->message, HasSubstr(text));
}

std::vector<Refused> refused() {
  return {
      {"NoGpu",
       [](auto& cards) {
         cards[2].gpu.clear();
         cards[2].why_none = "it has no NVIDIA driver";
       },
       2,
       {"rank 2 (host b) has none: it has no NVIDIA driver", "--comm mpi"}},
      {"NoGpuOnSeveral",
       [](auto& cards) {
         for (auto const rank : {1U, 3U}) {
           cards[rank].gpu.clear();
           cards[rank].why_none = "no GPU is visible to it";
         }
       },
       1,
       {"rank 1 (host a) has none: no GPU is visible to it", "2 of 4 ranks have no GPU"}},
      {"OneGpuForTwo",
       [](auto& cards) { cards[3].gpu = cards[2].gpu; },
       2,
       {"ranks 2 and 3 (host b) have the same GPU, GPU-0", "NCCL 2.30.7", "here 2", "--comm mpi",
        "or set NCCL_MULTI_RANK_GPU_ENABLE=1"}},
      {"OneGpuForTwoToldToOne",
       [](auto& cards) {
         cards[3].gpu = cards[2].gpu;
         cards[3].shares_gpu = true;
       },
       2,
       {"ranks 2 and 3 (host b)"}},
      {"OneGpuForTwoBeforeThatWasAllowed",
       [](auto& cards) {
         cards[1].gpu = cards[0].gpu;
         for (auto& one : cards) {
           one.shares_gpu = true;
           one.nccl_version = 22907;
         }
       },
       0,
       {"ranks 0 and 1 (host a)", "NCCL 2.29.7", "from 2.30 on NCCL_MULTI_RANK_GPU_ENABLE=1 allows it"}},
      {"OtherVersion",
       [](auto& cards) { cards[1].nccl_version = 22809; },
       1,
       {"rank 1 (host a) found NCCL 2.28.9, but rank 0 (host a) 2.30.7", "LD_LIBRARY_PATH"}},
      {"OlderThanBuiltWith",
       [](auto& cards) {
         for (auto& one : cards) one.nccl_version = 22703;
       },
       0,
       {"rank 0 (host a) found NCCL 2.27.3, older than the 2.28.9", "libnccl.so.2"}},
      {"OtherPieces",
       [](auto& cards) { cards[1].staging_bytes = 8192; },
       1,
       {"rank 1 (host a) stages 8192 bytes, but rank 0 (host a) 4096"}},
  };
}

INSTANTIATE_TEST_SUITE_P(Table, RefusedCards, testing::ValuesIn(refused()),
                         [](auto const& suite) { return suite.param.name; });

TEST(GpuCards, RanksMayShareAGpuWhereNcclWasToldAndAllowsIt) {
  auto cards = two_hosts_of_two();
  cards[3].gpu = cards[2].gpu;
  cards[2].shares_gpu = cards[3].shares_gpu = true;
  EXPECT_FALSE(refuse_nccl(cards).has_value());
}

TEST(GpuCards, GpusOfDifferentHostsAreDifferentGpus) {
  std::vector const cards{card("a", 0), card("b", 0)};
  EXPECT_FALSE(refuse_nccl(cards).has_value());
}

TEST(GpuCards, EveryRankHasEveryonesCard) {
  test::run_ranks(3, [](Communicator& base) {
    auto mine = card("h" + std::to_string(base.rank()), base.rank());
    mine.why_none = "none of \"them\"";
    mine.shares_gpu = base.rank() == 1;
    auto const cards = exchange_cards(base, mine);
    ASSERT_EQ(cards.size(), 3U);
    for (std::size_t rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(cards[rank].host, "h" + std::to_string(rank));
      EXPECT_EQ(cards[rank].gpu, "GPU-" + std::to_string(rank));
      EXPECT_EQ(cards[rank].why_none, "none of \"them\"");
      EXPECT_EQ(cards[rank].visible_gpus, 2);
      EXPECT_EQ(cards[rank].nccl_version, 23007);
      EXPECT_EQ(cards[rank].built_with, 22809);
      EXPECT_EQ(cards[rank].staging_bytes, 4096U);
      EXPECT_EQ(cards[rank].shares_gpu, rank == 1);
    }
  });
}

}  // namespace
}  // namespace rankslice
