// Which blocks travel in a gather, from whom, by which way, and how many bytes that is: for 1 to 4096 ranks.

#include "plan/gather_plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/literals.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

constexpr std::uint64_t kHidden = 24;  // rows of G
constexpr std::uint64_t kIntermediate = 12;

Model example(std::uint64_t experts) {
  auto model = test::split_model(experts, kHidden, kIntermediate);
  test::append_dense(model, "large.weight", DType::BF16, DType::F32, {1025, 4096});  // 16 MiB and 16 KiB in F32
  return model;
}

std::vector<PlannedSlice> whole(Model const& model) {
  std::vector<PlannedSlice> slices;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) slices.push_back({i, model.parameters[i].whole()});
  return slices;
}

/// Meshes of 1 to 4096 ranks.
std::vector<Mesh> meshes() {
  std::vector<Mesh> all;
  for (auto const shards : {1, 2, 4, 12}) {
    for (auto const ep : {1, 2, 3, 4, 7, 8, 60, 128, 341, 1024, 4096}) {
      for (int replicas = 1; replicas <= 3; ++replicas) {
        Mesh const mesh{.ep_replicate = replicas, .ep_shard = shards, .ep = ep};
        if (mesh.ranks() <= 4096) all.push_back(mesh);
      }
    }
  }
  return all;
}

/// Rules 9, 13 and 14, from their text: whether a rank has a part of an expert.
bool holds(Parameter const& parameter, Mesh const& mesh, int rank, Slice const& part) {
  auto const ep = static_cast<std::uint64_t>(rank % mesh.ep);
  auto const shard = static_cast<std::uint64_t>(rank / mesh.ep % mesh.ep_shard);
  auto const b = parameter.shape[0] / static_cast<std::uint64_t>(mesh.ep);
  auto const m = parameter.shape[0] % static_cast<std::uint64_t>(mesh.ep);
  auto const first = ep < m ? ep * (b + 1) : ep * b + m;
  auto const c = parameter.shape[1] / static_cast<std::uint64_t>(mesh.ep_shard);
  return first <= part.part.begin && part.part.end <= first + b + (ep < m ? 1 : 0) &&
         part.rows == Range{shard * c, (shard + 1) * c};
}

template <typename Check>
void for_every_mesh(Check const& check) {
  for (auto const experts : {1U, 5U, 60U}) {
    auto const model = example(experts);
    for (auto const& mesh : meshes()) {
      SCOPED_TRACE(testing::Message() << experts << " experts, " << mesh.ep_replicate << " x " << mesh.ep_shard << " x "
                                      << mesh.ep);
      check(model, mesh);
      if (testing::Test::HasFailure()) return;
    }
  }
}

std::uint64_t bytes_of(Model const& model, GatherBlock const& block) {
  return model.parameters[block.parameter].bytes(block.slice, Form::native);
}

TEST(GatherPlan, BlocksAreTheModelInItsOrderOneExpertOrAtMost4MiBAtATime) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    auto next = model.parameters.front().whole();
    std::uint32_t parameter = 0;
    for (auto const& block : plan_gather(model, whole(model), {.holdings = {.mesh = mesh}}).blocks) {
      ASSERT_EQ(block.parameter, parameter);
      ASSERT_EQ(block.slice.part.begin, next.part.begin);
      ASSERT_EQ(block.slice.rows, next.rows);
      auto const stacked = model.parameters[parameter].stacked_experts;
      ASSERT_TRUE(stacked ? block.slice.part.size() == 1 : bytes_of(model, block) <= 4_MiB);
      next.part.begin = block.slice.part.end;
      if (next.part.empty() && ++parameter < model.parameters.size()) next = model.parameters[parameter].whole();
    }
    ASSERT_EQ(parameter, model.parameters.size());
  });
}

TEST(GatherPlan, EveryRowOfAnExpertIsSentOnceByARankThatHoldsIt) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    for (auto const& block : plan_gather(model, whole(model), {.holdings = {.mesh = mesh}}).blocks) {
      auto const& parameter = model.parameters[block.parameter];
      if (!parameter.stacked_experts) {
        ASSERT_TRUE(block.parts.empty()) << "every rank has dense tensors itself";
        continue;
      }
      std::uint64_t row = 0;
      for (auto const& [owner, part] : block.parts) {
        ASSERT_EQ(part.part, block.slice.part);
        ASSERT_EQ(part.rows.begin, row);
        ASSERT_TRUE(holds(parameter, mesh, owner, part)) << owner;
        row = part.rows.end;
      }
      ASSERT_EQ(row, parameter.shape[1]);
    }
  });
}

TEST(GatherPlan, TheOnlyReceiverIsNotSentWhatItHolds) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    auto const receiver = mesh.ranks() / 2;
    for (auto const& block :
         plan_gather(model, whole(model), {.holdings = {.mesh = mesh}, .receiver = receiver}).blocks) {
      for (auto const& [owner, part] : block.parts) {
        auto const& parameter = model.parameters[block.parameter];
        ASSERT_EQ(owner == receiver, holds(parameter, mesh, receiver, part)) << owner;
      }
    }
  });
}

TEST(GatherPlan, ReplicasShareTheSending) {
  auto const model = example(60);
  Mesh const mesh{.ep_replicate = 3, .ep_shard = 2, .ep = 4};
  std::vector<std::uint64_t> sent(static_cast<std::size_t>(mesh.ranks()));
  for (auto const& block : plan_gather(model, whole(model), {.holdings = {.mesh = mesh}}).blocks) {
    for (auto const& part : block.parts) sent[static_cast<std::size_t>(part.owner)] += bytes_of(model, block) / 2;
  }
  EXPECT_THAT(sent, testing::Each(sent.front()));
}

TEST(GatherPlan, DenseBlocksThatNobodyHoldsAreDealtToAllRanks) {
  auto const model = example(5);
  for (auto const ranks : {1, 2, 3, 5, 4096}) {
    std::vector<int> dealt(static_cast<std::size_t>(ranks));
    for (auto const& block :
         plan_gather(model, whole(model), {.holdings = {.mesh = make_mesh(ranks)}, .dense_everywhere = false}).blocks) {
      if (model.parameters[block.parameter].stacked_experts) continue;
      ASSERT_EQ(block.parts.size(), 1U);
      EXPECT_EQ(block.parts.front().slice, block.slice);
      ++dealt[static_cast<std::size_t>(block.parts.front().owner)];
    }
    auto const [least, most] = std::ranges::minmax(dealt);
    EXPECT_LE(most - least, 1);
    EXPECT_EQ(std::accumulate(dealt.begin(), dealt.end(), 0), 2 + 5) << "16 MiB and a little are five blocks";
  }
}

TEST(GatherPlan, BatchesAreTheBlocksInOrderAndBounded) {
  auto const model = example(60);
  for (auto const most : {std::uint64_t{1}, 5_KiB, 6_MiB, 1_GiB}) {
    auto const plan = plan_gather(model, whole(model), {.holdings = {.mesh = make_mesh(4)}}, most);
    std::uint64_t next = 0;
    for (auto const& batch : plan.batches) {
      EXPECT_EQ(batch.begin, next);
      next = batch.end;
      std::uint64_t bytes = 0;
      for (auto i = batch.begin; i < batch.end; ++i) bytes += bytes_of(model, plan.blocks[i]);
      EXPECT_TRUE(bytes <= most || batch.size() == 1);
    }
    EXPECT_EQ(next, plan.blocks.size());
  }
}

TEST(GatherPlan, SlicesOfBatchesAndOfSendersAddUpToTheModel) {
  auto const model = example(60);
  auto const all = plan_bytes(model, whole(model), Form::native);
  auto const plan =
      plan_gather(model, whole(model), {.holdings = {.mesh = make_mesh(8, 2, 2)}, .dense_everywhere = false}, 100_KiB);
  std::uint64_t in_batches = 0, sent = 0;
  for (auto const& batch : plan.batches) in_batches += plan_bytes(model, slices_of(plan, batch), Form::native);
  for (int rank = 0; rank < 8; ++rank) sent += plan_bytes(model, slices_sent_by(plan, rank), Form::native);
  EXPECT_EQ(in_batches, all);
  EXPECT_EQ(sent, all);
  EXPECT_EQ(slices_of(plan, {0, plan.blocks.size()}).size(), model.parameters.size());
}

TEST(GatherPlan, ATensorWithoutElementsIsABlockThatNobodySends) {
  Model model;
  test::append_dense(model, "empty", DType::BF16, DType::BF16, {0, 7});
  auto const plan = plan_gather(model, whole(model), {.holdings = {.mesh = make_mesh(3)}, .dense_everywhere = false});
  ASSERT_EQ(plan.blocks.size(), 1U);
  EXPECT_TRUE(plan.blocks.front().parts.empty());
  EXPECT_EQ(plan.batches.size(), 1U);
}

// What is sent is what is received -----------------------------------------------------------------------------------

struct Totals {
  std::uint64_t sent = 0, received = 0;
};

Totals totals(std::vector<GatherTraffic> const& traffic) {
  Totals all;
  for (auto const& rank : traffic) {
    all.sent += rank.sent;
    all.received += rank.received;
  }
  return all;
}

std::uint64_t stacked_bytes(Model const& model) {
  std::uint64_t bytes = 0;
  for (auto const& parameter : model.parameters) {
    if (parameter.stacked_experts) bytes += parameter.bytes(parameter.whole(), Form::native);
  }
  return bytes;
}

TEST(GatherTraffic, OfOneReceiverIsWhatItDoesNotHold) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    auto const receiver = mesh.ranks() - 1;
    auto const plan = plan_gather(model, whole(model), {.holdings = {.mesh = mesh}, .receiver = receiver});
    auto const traffic = gather_traffic(model, plan, route_to(receiver, mesh.ranks()));
    auto const own = plan_bytes(model, slices_sent_by(plan, receiver), Form::native);
    auto const& at_receiver = traffic[static_cast<std::size_t>(receiver)];
    ASSERT_EQ(at_receiver.received, stacked_bytes(model) - own);
    ASSERT_EQ(at_receiver.sent, 0U);
    ASSERT_EQ(totals(traffic).sent, at_receiver.received);
    ASSERT_EQ(totals(traffic).received, at_receiver.received);
  });
}

TEST(GatherTraffic, ToAllBringsEveryRankWhatItDoesNotSend) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    if (mesh.ranks() == 1) return;
    auto const traffic = gather_traffic(model, plan_gather(model, whole(model), {.holdings = {.mesh = mesh}}),
                                        route_to_all(mesh.ranks()));
    for (auto const& rank : traffic) ASSERT_EQ(rank.sent + rank.received, stacked_bytes(model));
    ASSERT_EQ(totals(traffic).sent, stacked_bytes(model));
  });
}

TEST(GatherTraffic, ToHostsBringsEveryByteToEachHostOnceAndToItsOtherRanksNever) {
  for (auto const per_host : {1, 2, 8}) {
    auto const model = example(60);
    Mesh const mesh{.ep_replicate = 1, .ep_shard = 1, .ep = 8};
    std::vector<int> first_ranks;
    for (int rank = 0; rank < 8; ++rank) first_ranks.push_back(rank / per_host * per_host);
    auto const route = route_to_hosts(first_ranks);
    auto const plan = plan_gather(model, whole(model), {.holdings = {.mesh = mesh}});
    auto const traffic = gather_traffic(model, plan, route);
    for (int rank = 0; rank < 8; ++rank) {
      auto const& of_rank = traffic[static_cast<std::size_t>(rank)];
      auto const own = plan_bytes(model, slices_sent_by(plan, rank), Form::native);
      if (rank % per_host != 0) {
        EXPECT_EQ(of_rank.sent, own);
        EXPECT_EQ(of_rank.received, 0U);
      } else {
        EXPECT_EQ(of_rank.received, stacked_bytes(model) - own);
      }
    }
  }
}

TEST(GatherTraffic, RoutesAreFoundFromTheFirstRanksOfHostsInAnyOrder) {
  auto const route = route_to_hosts({0, 1, 0, 1, 4});
  EXPECT_THAT(route.receivers, testing::ElementsAre(0, 1, 4));
  EXPECT_THAT(route.roots, testing::ElementsAre(0, 1, 0, 1, 4));
}

}  // namespace
}  // namespace rankslice
