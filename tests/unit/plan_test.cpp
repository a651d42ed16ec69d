#include "plan/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/hand_model.hpp"
#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;

constexpr std::uint64_t kExpertCounts[] = {1, 3, 8, 60, 128, 256, 512};

// Every small number of ranks, then powers of two, their neighbours and odd ones.
std::vector<int> rank_counts() {
  std::vector<int> counts;
  for (int n = 1; n <= 33; ++n) counts.push_back(n);
  for (int n = 64; n <= 4096; n *= 2) counts.insert(counts.end(), {n - 1, n});
  counts.insert(counts.end(), {48, 60, 96, 100, 257, 384, 513, 720, 1025, 1536, 2049, 3001, 3600});
  return counts;
}

// Every kind of parameter that plans tell apart; 24 and 12 bytes per expert, 58 dense HF bytes, 64 native ones.
Model mixed_model(std::uint64_t experts) {
  Model model;
  test::append_dense(model, "dense.odd", DType::BF16, DType::BF16, {7});       // 14 bytes
  test::append_grouped(model, "experts.gate_up_proj", {experts, 3, 4});        // 24 bytes each
  test::append_dense(model, "dense.converted", DType::BF16, DType::F32, {3});  // 6 bytes, 12 when loaded
  test::append_dense(model, "dense.sub_byte", DType::F4, DType::F4, {2, 5});   // 5 bytes
  test::append_grouped(model, "experts.down_proj", {experts, 2, 3});           // 12 bytes each
  test::append_dense(model, "dense.scalar", DType::U8, DType::U8, {});         // 1 byte
  test::append_dense(model, "dense.empty", DType::F32, DType::F32, {0, 9});    // none
  test::append_dense(model, "dense.wide", DType::F64, DType::F64, {2, 2});     // 32 bytes
  return model;
}
constexpr std::uint64_t kDenseHfBytes = 58;
constexpr std::uint64_t kDenseNativeBytes = 64;

std::uint64_t units(Parameter const& parameter) {
  if (parameter.stacked_experts) return parameter.shape[0];
  std::uint64_t count = 1;
  for (auto const axis : parameter.shape) count *= axis;
  return parameter.hf_dtype == DType::F4 ? count / 2 : count;
}

Range all_rows(Parameter const& parameter) { return {0, parameter.stacked_experts ? parameter.shape[1] : 1}; }

std::uint64_t hf_unit_bytes(Parameter const& parameter) {
  if (parameter.stacked_experts) return parameter.shape[1] * parameter.shape[2] * 2;
  switch (parameter.hf_dtype) {
    case DType::F64:
      return 8;
    case DType::F32:
      return 4;
    case DType::BF16:
      return 2;
    default:
      return 1;
  }
}

// Do these parts, in any order, make up [0, count) with each unit exactly once?
testing::AssertionResult tile(std::vector<Range> parts, std::uint64_t count) {
  std::ranges::sort(parts);
  std::uint64_t next = 0;
  for (auto const& part : parts) {
    if (part.empty()) continue;
    if (part.begin != next || part.end < part.begin) {
      return testing::AssertionFailure() << "[" << part.begin << ", " << part.end << ") follows " << next;
    }
    next = part.end;
  }
  if (next != count) return testing::AssertionFailure() << "they end at " << next << " instead of " << count;
  return testing::AssertionSuccess();
}

std::vector<Mesh> meshes_of(int ranks) {
  std::vector<Mesh> meshes;
  for (int replicate = 1; replicate <= 4; ++replicate) {
    if (ranks % replicate == 0) meshes.push_back({.ep_replicate = replicate, .ep_shard = 1, .ep = ranks / replicate});
  }
  return meshes;
}

// Calls `check(model, mesh)` for 1 to 4096 ranks, 1 to 4 replicas and all numbers of experts.
template <typename Check>
void for_every_mesh(Check const& check) {
  for (auto const experts : kExpertCounts) {
    auto const model = mixed_model(experts);
    for (auto const ranks : rank_counts()) {
      for (auto const& mesh : meshes_of(ranks)) {
        SCOPED_TRACE(testing::Message() << experts << " experts, " << mesh.ep_replicate << " x " << mesh.ep);
        check(model, mesh);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(LoadPlan, HoldsTheOwnedExpertsAndAllDenseTensorsInTheOrderOfTheCatalog) {
  auto const model = mixed_model(8);
  auto const plan = make_load_plan(model, Form::hf, {.ep_replicate = 2, .ep_shard = 1, .ep = 3},
                                   {.ep_replicate = 1, .ep_shard = 0, .ep = 2});
  std::vector<Range> const expected{{0, 7}, {6, 8}, {0, 3}, {0, 5}, {6, 8}, {0, 1}, {0, 0}, {0, 4}};
  ASSERT_EQ(plan.slices.size(), expected.size());
  for (std::uint32_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(plan.slices[i].parameter, i);
    EXPECT_EQ(plan.slices[i].slice.part, expected[i]) << i;
  }
  EXPECT_EQ(plan.slices[1].slice.rows, (Range{0, 3}));
  EXPECT_EQ(plan.slices[4].slice.rows, (Range{0, 2}));
  EXPECT_EQ(plan.bytes_wanted, 2 * (24 + 12) + kDenseHfBytes);
  EXPECT_EQ(plan.bytes_read, plan.bytes_wanted);
  EXPECT_EQ(plan.bytes_owned, 2 * (24 + 12) + kDenseNativeBytes);
}

TEST(LoadPlan, AStoreIsReadInTheNativeForm) {
  auto const plan = make_load_plan(mixed_model(8), Form::native, {}, {});
  EXPECT_EQ(plan.bytes_read, 8 * (24 + 12) + kDenseNativeBytes);
  EXPECT_EQ(plan.bytes_owned, plan.bytes_read);
}

TEST(LoadPlan, Rule42_ARankWithoutExpertsStillHasItsEmptyPart) {
  auto const plan = make_load_plan(mixed_model(3), Form::hf, {.ep_replicate = 1, .ep_shard = 1, .ep = 4}, {.ep = 3});
  ASSERT_EQ(plan.slices.size(), 8U);
  EXPECT_EQ(plan.slices[1].slice.part, (Range{3, 3}));
  EXPECT_EQ(plan.slices[4].slice.part, (Range{3, 3}));
  EXPECT_EQ(plan.bytes_read, kDenseHfBytes);
}

TEST(LoadPlan, Rule9_EveryReplicaOwnsEveryExpertOnceAndEveryRankAllElseForOneTo4096Ranks) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    for (int replica = 0; replica < mesh.ep_replicate; ++replica) {
      std::vector<std::vector<Range>> owned(model.parameters.size());
      for (int ep = 0; ep < mesh.ep; ++ep) {
        auto const coordinate = MeshCoordinate{.ep_replicate = replica, .ep_shard = 0, .ep = ep};
        auto const plan = make_load_plan(model, Form::hf, mesh, coordinate);
        for (auto const& [parameter, slice] : plan.slices) {
          auto const& of = model.parameters[parameter];
          if (slice.rows != all_rows(of)) ADD_FAILURE() << of.fqn << ": rows are missing";
          if (of.stacked_experts) {
            owned[parameter].push_back(slice.part);
          } else if (slice.part != Range{0, units(of)}) {
            ADD_FAILURE() << of.fqn << " is not whole on rank " << mesh.rank(coordinate);
          }
        }
      }
      for (std::size_t i = 0; i < model.parameters.size(); ++i) {
        auto const& parameter = model.parameters[i];
        if (!parameter.stacked_experts) continue;
        EXPECT_TRUE(tile(owned[i], units(parameter))) << parameter.fqn;
      }
    }
  });
}

TEST(LoadPlan, PlanAllRanksAgreesWithThePlanOfEachRank) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    for (auto const form : {Form::hf, Form::native}) {
      auto const all = plan_all_ranks(model, form, mesh);
      ASSERT_EQ(all.size(), static_cast<std::size_t>(mesh.ranks()));
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        auto const plan = make_load_plan(model, form, mesh, mesh.coordinate(rank));
        auto const& bytes = all[static_cast<std::size_t>(rank)];
        if (bytes.wanted != plan.bytes_wanted || bytes.read != plan.bytes_read || bytes.owned != plan.bytes_owned ||
            bytes.experts != plan.slices[1].slice.part.size()) {
          FAIL() << "rank " << rank;
        }
      }
    }
  });
}

TEST(LoadPlan, TotalsOfALargeClusterAreEachByteOncePerReplica) {
  auto const model = test::make_model({});
  std::uint64_t dense_bytes = 0;
  std::uint64_t expert_bytes = 0;
  for (auto const& parameter : model.parameters) {
    (parameter.stacked_experts ? expert_bytes : dense_bytes) += byte_size(parameter.hf_dtype, parameter.shape);
  }
  for (auto const& mesh : {make_mesh(4096), make_mesh(4096, 64), make_mesh(720, 360), make_mesh(6)}) {
    std::uint64_t read = 0;
    std::uint64_t experts = 0;
    for (auto const& bytes : plan_all_ranks(model, Form::hf, mesh)) {
      read += bytes.read;
      experts += bytes.experts;
    }
    auto const ranks = static_cast<std::uint64_t>(mesh.ranks());
    auto const replicas = static_cast<std::uint64_t>(mesh.ep_replicate);
    EXPECT_EQ(read, ranks * dense_bytes + replicas * expert_bytes);
    EXPECT_EQ(experts, replicas * 256);
  }
}

TEST(LoadPlan, StackedTensorsOfDifferentExpertCountsAreCountedApart) {
  Model model;
  for (auto const experts : {3U, 8U, 3U}) test::append_grouped(model, "experts", {experts, 2, 2});
  auto const mesh = make_mesh(4);
  auto const all = plan_all_ranks(model, Form::hf, mesh);
  EXPECT_EQ(all[0].read, (1U + 2U + 1U) * 8U);
  EXPECT_EQ(all[3].read, 2U * 8U);
  EXPECT_EQ(all[3].experts, 0U);
}

TEST(SavePlan, EveryUnitIsWrittenExactlyOnceOverTheMeshForOneTo4096Ranks) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    std::vector<std::vector<Range>> written(model.parameters.size());
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      for (auto const& [parameter, slice] : make_save_plan(model, {.mesh = mesh}, rank)) {
        if (slice.empty()) ADD_FAILURE() << "an empty slice of rank " << rank;
        if (slice.rows != all_rows(model.parameters[parameter])) ADD_FAILURE() << "rows are missing on rank " << rank;
        written[parameter].push_back(slice.part);
      }
    }
    for (std::size_t i = 0; i < model.parameters.size(); ++i) {
      EXPECT_TRUE(tile(written[i], units(model.parameters[i]))) << model.parameters[i].fqn;
    }
  });
}

TEST(SavePlan, ARankWritesOnlyExpertsThatItHolds) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      auto const held = make_load_plan(model, Form::hf, mesh, mesh.coordinate(rank)).slices;
      for (auto const& [parameter, slice] : make_save_plan(model, {.mesh = mesh}, rank)) {
        auto const& part = held[parameter].slice.part;
        if (slice.part.begin < part.begin || slice.part.end > part.end) FAIL() << "rank " << rank << ": " << parameter;
      }
    }
  });
}

TEST(SavePlan, DenseTensorsAreDividedEvenlyByBytes) {
  constexpr std::uint64_t widest = 8;  // the largest unit: bounds are rounded down by less than that
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    auto const ranks = static_cast<std::uint64_t>(mesh.ranks());
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      std::uint64_t bytes = 0;
      for (auto const& [parameter, slice] : make_save_plan(model, {.mesh = mesh}, rank)) {
        auto const& of = model.parameters[parameter];
        if (!of.stacked_experts) bytes += slice.part.size() * hf_unit_bytes(of);
      }
      if (bytes > kDenseHfBytes / ranks + widest || bytes + widest <= kDenseHfBytes / ranks) {
        FAIL() << "rank " << rank << " writes " << bytes << " bytes";
      }
    }
  });
}

TEST(SavePlan, ReplicasShareTheirExperts) {
  Model model;
  test::append_grouped(model, "experts", {10, 2, 2});
  Mesh const mesh{.ep_replicate = 2, .ep_shard = 1, .ep = 4};  // held: 3, 3, 2, 2
  std::vector<Range> written;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const plan = make_save_plan(model, {.mesh = mesh}, rank);
    ASSERT_EQ(plan.size(), 1U);
    written.push_back(plan[0].slice.part);
  }
  EXPECT_THAT(written, ElementsAre(Range{0, 2}, Range{3, 5}, Range{6, 7}, Range{8, 9},  //
                                   Range{2, 3}, Range{5, 6}, Range{7, 8}, Range{9, 10}));
}

TEST(SavePlan, DenseSharesRunOverTensorBoundaries) {
  Model model;
  test::append_dense(model, "a", DType::BF16, DType::BF16, {5});  // bytes 0 to 10
  test::append_dense(model, "b", DType::F32, DType::F32, {4});    // bytes 10 to 26
  auto const mesh = make_mesh(2);                                 // shares of 13 bytes
  auto const first = make_save_plan(model, {.mesh = mesh}, 0);
  auto const second = make_save_plan(model, {.mesh = mesh}, 1);
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].parameter, 0U);
  EXPECT_EQ(first[0].slice.part, (Range{0, 5}));
  ASSERT_EQ(second.size(), 1U);  // the element that byte 13 cuts belongs to the second rank
  EXPECT_EQ(second[0].parameter, 1U);
  EXPECT_EQ(second[0].slice.part, (Range{0, 4}));
}

}  // namespace
}  // namespace rankslice
