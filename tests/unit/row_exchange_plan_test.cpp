// Who reads which stored rows where the ranks of an ep_shard group share the reading, and what goes from whom to whom.

#include "plan/row_exchange_plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "rankslice/error.hpp"

#include "hf_target.hpp"
#include "plan/held.hpp"
#include "plan/plan.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t kHidden = 96;        // rows of G, stored rows of D
constexpr std::uint64_t kIntermediate = 48;  // rows of D; G has twice as many stored rows
constexpr std::uint64_t kUnit = 2;           // BF16
constexpr std::uint64_t kSums = 24;          // bytes of the three digests behind every message

Storage storage_of(Model const& model) {
  auto const catalog = test::catalog_of(model, 8);
  return {.form = Form::hf, .files = catalog.files, .pieces = hf_pieces(catalog, model)};
}

struct Job {
  Model model;
  Mesh mesh;
  std::uint64_t batch_bytes = 20'000;  // several batches
  Storage storage = storage_of(model);

  [[nodiscard]] RowExchangePlan plan_of(int rank) const {
    return plan_row_exchange(storage, model, {.mesh = mesh}, rank, batch_bytes);
  }
  [[nodiscard]] std::vector<RowExchangePlan> plans() const {
    std::vector<RowExchangePlan> all;
    for (int rank = 0; rank < mesh.ranks(); ++rank) all.push_back(plan_of(rank));
    return all;
  }
};

std::vector<Mesh> meshes() {
  std::vector<Mesh> all;
  for (auto const shards : {2, 3, 4, 6, 8, 16, 48}) {
    for (auto const ep : {1, 2, 3, 5, 8, 12}) {
      for (auto const replicas : {1, 2}) all.push_back({.ep_replicate = replicas, .ep_shard = shards, .ep = ep});
    }
  }
  return all;
}

/// With fewer and more experts than ranks; grouped and split ones.
void for_every_mesh(std::function<void(Job const&)> const& check) {
  for (auto const experts : {1U, 5U, 8U}) {
    for (auto const& mesh : meshes()) {
      SCOPED_TRACE(testing::Message() << experts << " experts, " << mesh.ep_replicate << " x " << mesh.ep_shard << " x "
                                      << mesh.ep);
      check({.model = test::split_model(experts, kHidden, kIntermediate), .mesh = mesh});
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(RowExchangePlan, EveryStoredByteOfAnExpertIsReadOnceByEachGroup) {
  for_every_mesh([](Job const& job) {
    std::vector<int> reads(job.storage.files.front().size);
    for (auto const& plan : job.plans()) {
      for (auto const& block : plan.blocks) {
        auto const bytes = bytes_of(job.model, block, band_of(block, plan.place, plan.group.size()));
        for (auto at = bytes.begin; at < bytes.end; ++at) ++reads.at(at);
      }
    }
    std::vector<int> expected(reads.size());
    for (auto const& piece : job.storage.pieces) {
      if (!job.model.parameters[piece.parameter].stacked_experts) continue;
      for (auto at = piece.extent.bytes.begin; at < piece.extent.bytes.end; ++at) expected[at] = job.mesh.ep_replicate;
    }
    EXPECT_TRUE(reads == expected);
  });
}

TEST(RowExchangePlan, EveryNativeColumnOfAHeldExpertArrivesOnceFromAGroupOfRanksThatHoldIt) {
  for_every_mesh([](Job const& job) {
    for (int rank = 0; rank < job.mesh.ranks(); ++rank) {
      auto const plan = job.plan_of(rank);
      EXPECT_EQ(plan.group.at(plan.place), rank);
      std::map<std::pair<std::uint32_t, std::uint64_t>, std::vector<int>> arrivals;  // of a parameter's expert
      for (auto const& block : plan.blocks) {
        auto const index = block.piece->parameter;
        auto& columns = arrivals[{index, block.expert}];
        columns.resize(job.model.parameters[index].shape[2]);
        for (std::size_t from = 0; from < plan.group.size(); ++from) {
          auto const band = band_of(block, from, plan.group.size());
          auto const first = job.model.tensors[block.piece->tensor].columns.begin;
          for (auto row = band.begin; row < band.end; ++row) ++columns.at(first + row);
        }
      }
      std::size_t held = 0;
      for (auto const& [index, slice] : held_slices(job.model, {.mesh = job.mesh}, rank)) {
        if (!job.model.parameters[index].stacked_experts) continue;
        held += slice.part.size();
        for (auto expert = slice.part.begin; expert < slice.part.end; ++expert) {
          EXPECT_THAT((arrivals[{index, expert}]), Each(1)) << rank;
        }
      }
      EXPECT_EQ(arrivals.size(), held);
      for (auto const other : plan.group) {
        EXPECT_EQ(job.mesh.coordinate(other).ep, job.mesh.coordinate(rank).ep);
        EXPECT_EQ(job.mesh.coordinate(other).ep_replicate, job.mesh.coordinate(rank).ep_replicate);
      }
    }
  });
}

TEST(RowExchangePlan, AllOfAGroupHaveTheSameBlocksInTheOrderOfTheFileAndAllRanksAsManyBatches) {
  for_every_mesh([](Job const& job) {
    auto const plans = job.plans();
    for (auto const& plan : plans) {
      auto const& first = plans[static_cast<std::size_t>(plan.group.front())];
      ASSERT_EQ(plan.blocks.size(), first.blocks.size());
      for (std::size_t i = 0; i < plan.blocks.size(); ++i) {
        EXPECT_EQ(plan.blocks[i].piece, first.blocks[i].piece);
        EXPECT_EQ(plan.blocks[i].expert, first.blocks[i].expert);
        EXPECT_EQ(plan.blocks[i].rows, first.blocks[i].rows);
      }
      EXPECT_EQ(plan.batches.size(), plans.front().batches.size());
      EXPECT_EQ(plan.parameters, plans.front().parameters);
      std::uint64_t next = 0;
      for (auto const& batch : plan.batches) {
        EXPECT_EQ(batch.begin, next);
        next = batch.end;
        auto const begin_of = [&](RowBlock const& block) { return bytes_of(job.model, block, block.rows).begin; };
        auto const blocks = std::span(plan.blocks).subspan(batch.begin, batch.size());
        EXPECT_TRUE(std::ranges::is_sorted(blocks, {}, begin_of));
      }
      EXPECT_EQ(next, plan.blocks.size());
    }
  });
  Job const job{.model = test::split_model(8, kHidden, kIntermediate), .mesh = make_mesh(4, 2, 2)};
  EXPECT_GT(job.plan_of(0).batches.size(), 1U);
}

TEST(RowExchangePlan, ARankReadsItsPartOfWhatItWouldReadAloneAndReceivesWhatItHoldsButForItsBand) {
  for_every_mesh([](Job const& job) {
    auto const all = row_traffic(job.model, Form::hf, job.mesh);
    std::uint64_t sent = 0, received = 0;
    for (int rank = 0; rank < job.mesh.ranks(); ++rank) {
      auto const plan = job.plan_of(rank);
      auto const traffic = row_traffic(job.model, plan);
      auto const places = plan.group.size();
      std::uint64_t read = 0, held = 0, own = 0, held_whole = 0;
      for (auto const& block : plan.blocks) {
        auto const rows = job.model.parameters[block.piece->parameter].shape[1];
        auto const band = band_of(block, plan.place, places).size();
        read += band * rows * kUnit;
        own += band * rows / places * kUnit;
        held += block.rows.size() * rows / places * kUnit;
        held_whole += block.rows.size() * rows * kUnit;
      }
      EXPECT_EQ(traffic.read, read);
      EXPECT_EQ(traffic.read_alone, held_whole);
      EXPECT_EQ(traffic.wanted_alone, held);
      EXPECT_EQ(traffic.received, held - own + plan.blocks.size() * (places - 1) * kSums);
      EXPECT_EQ(traffic.sent, own * (places - 1) + plan.blocks.size() * (places - 1) * kSums);
      auto const& at_once = all[static_cast<std::size_t>(rank)];
      EXPECT_EQ(at_once.read, traffic.read);
      EXPECT_EQ(at_once.read_alone, traffic.read_alone);
      EXPECT_EQ(at_once.wanted_alone, traffic.wanted_alone);
      EXPECT_EQ(at_once.sent, traffic.sent);
      EXPECT_EQ(at_once.received, traffic.received);
      sent += traffic.sent;
      received += traffic.received;
    }
    EXPECT_EQ(sent, received);
  });
}

TEST(RowExchangePlan, TwoRanksOfAKnownModel) {
  // One expert: D [1, 48, 96], stored [96, 48]; of each kind of experts one, grouped and split.
  Job const job{.model = test::split_model(1, kHidden, kIntermediate), .mesh = make_mesh(2, 1, 2)};
  auto const d = 96 * 48 * 2, g = 96 * 96 * 2;  // bytes
  for (auto const& traffic : row_traffic(job.model, Form::hf, job.mesh)) {
    EXPECT_EQ(traffic.read, 2U * (d + g) / 2);
    EXPECT_EQ(traffic.read_alone, 2U * (d + g));
    EXPECT_EQ(traffic.sent, 2U * (d + g) / 4 + 5 * 24) << "of D, and of G grouped in one message, split in two";
    EXPECT_EQ(traffic.received, traffic.sent);
  }
}

TEST(RowExchangePlan, WhatIsConvertedTravelsAsItIsHeld) {
  Job job{.model = test::split_model(2, kHidden, kIntermediate), .mesh = make_mesh(2, 1, 2)};
  auto const before = row_traffic(job.model, Form::hf, job.mesh).front();
  for (auto& parameter : job.model.parameters) parameter.dtype = DType::F32;
  auto const after = row_traffic(job.model, Form::hf, job.mesh).front();
  auto const messages = 2 * 5 * kSums;
  EXPECT_EQ(after.read, before.read);
  EXPECT_EQ(after.sent - messages, 2 * (before.sent - messages));
}

TEST(RowExchangePlan, OnlyShortColumnsThatTheMeshDividesAreExchanged) {
  Model model;
  test::append_dense(model, "dense", DType::BF16, DType::BF16, {64, 64});
  test::append_grouped(model, "short", {2, 4, 8});
  test::append_grouped(model, "rows", {2, 4, 8}, Layout::same);
  test::append_grouped(model, "long", {2, 1 << 16, 4});     // half of it is 64 KiB
  test::append_grouped(model, "not quite", {2, 65534, 4});  // 2 bytes less
  test::append_grouped(model, "held otherwise", {2, 4, 8});
  auto const storage = storage_of(model);
  Holdings holdings{.mesh = make_mesh(2, 1, 2)};
  holdings.divisions.emplace_back(std::vector<Slice>{model.parameters[5].whole(), {}});
  holdings.division_of[5] = 0;
  EXPECT_THAT(plan_row_exchange(storage, model, holdings, 0).parameters, ElementsAre(1, 4));

  EXPECT_THAT(plan_row_exchange(storage, model, {.mesh = make_mesh(2)}, 0).parameters, IsEmpty());
  auto native = storage;
  native.form = Form::native;
  EXPECT_THAT(plan_row_exchange(native, model, {.mesh = make_mesh(2, 1, 2)}, 0).parameters, IsEmpty());
}

TEST(RowExchangePlan, Rule15_RowsThatDoNotDivideAreAnError) {
  auto const model = test::split_model(2, kHidden, kIntermediate);
  EXPECT_THROW((void)row_traffic(model, Form::hf, make_mesh(5, 1, 5)), PlanError);
  EXPECT_THROW((void)plan_row_exchange(storage_of(model), model, {.mesh = make_mesh(5, 1, 5)}, 0), PlanError);
}

TEST(RowExchangePlan, ALargeExpertTravelsInBlocksOfAtMost8MiB) {
  Model model;
  test::append_grouped(model, "large", {2, 8192, 3000});
  Job const job{.model = model, .mesh = make_mesh(2, 1, 2)};
  auto const plan = job.plan_of(1);
  EXPECT_EQ(plan.blocks.size(), 2U * 6);  // 46.9 MiB each
  for (auto const& block : plan.blocks) EXPECT_EQ(block.rows.size(), 500U);
  EXPECT_EQ(row_value_bytes(job.model, plan, plan.blocks.front(), 0), 250U * 4096 * 2);
}

TEST(RowExchangePlan, WhatIsReadAreTheBandsInTheOrderOfTheBlocks) {
  Model model;
  test::append_grouped(model, "experts", {3, 4, 8});
  Job const job{.model = model, .mesh = make_mesh(2, 1, 2)};
  // From byte 8 on: experts of 64 bytes, of which the first rank reads the first half.
  EXPECT_THAT(row_extents(job.model, job.plan_of(0)),
              ElementsAre(Extent{0, {8, 40}}, Extent{0, {72, 104}}, Extent{0, {136, 168}}));
  EXPECT_THAT(row_extents(job.model, job.plan_of(1)),
              ElementsAre(Extent{0, {40, 72}}, Extent{0, {104, 136}}, Extent{0, {168, 200}}));
}

}  // namespace
}  // namespace rankslice
