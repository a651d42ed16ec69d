// Who writes and who sends what, where ranks hold other slices than their mesh gives them: any cuts, any copies.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "core/literals.hpp"
#include "core/slice_at.hpp"
#include "plan/gather_plan.hpp"
#include "plan/held.hpp"
#include "plan/plan.hpp"
#include "support/hand_model.hpp"
#include "support/local_parts.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

Model example() {
  Model model;
  test::append_dense(model, "odd", DType::BF16, DType::BF16, {7, 3});
  test::append_grouped(model, "gate_up_proj", {10, 6, 4});
  test::append_dense(model, "converted", DType::BF16, DType::F32, {5});
  test::append_dense(model, "scalar", DType::U8, DType::U8, {});
  test::append_dense(model, "as_mesh", DType::F32, DType::F32, {11});
  test::append_grouped(model, "down_proj", {10, 4, 3});
  test::append_dense(model, "large", DType::BF16, DType::BF16, {1000, 5000});
  return model;
}

/// Whether slices are apart, and as much as the whole, inside of which they lie.
testing::AssertionResult tile(std::vector<Slice> const& slices, Slice const& whole) {
  std::uint64_t size = 0;
  for (auto slice = slices.begin(); slice != slices.end(); ++slice) {
    if (intersection(*slice, whole) != *slice) return testing::AssertionFailure() << to_string(*slice) << " sticks out";
    for (auto other = slices.begin(); other != slice; ++other) {
      if (!intersection(*other, *slice).empty()) {
        return testing::AssertionFailure() << to_string(*slice) << " and " << to_string(*other) << " overlap";
      }
    }
    size += slice->size();
  }
  if (size != whole.size()) return testing::AssertionFailure() << size << " of " << whole.size() << " units";
  return testing::AssertionSuccess();
}

/// An even number of ranks, some of which hold the same: what each distinct holder has is cut at random.
struct Cluster {
  int ranks = 1;
  Holdings holdings{};
  std::vector<std::vector<Slice>> slices{};  ///< By parameter, by rank.
};

Cluster random_cluster(Model const& model, std::mt19937& random) {
  auto const distinct = 2 * std::uniform_int_distribution<std::size_t>(1, 4)(random);
  auto const copies = std::uniform_int_distribution<std::size_t>(1, 3)(random);
  Cluster cluster{.ranks = static_cast<int>(distinct * copies)};
  cluster.holdings.mesh = make_mesh(cluster.ranks);
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    auto& slices = cluster.slices.emplace_back();
    auto const as_mesh = parameter.shape.empty() || parameter.fqn == "as_mesh";
    auto parts = as_mesh ? std::vector(distinct, test::whole_part(parameter.shape))
                         : test::random_tiling(parameter, distinct, random);
    std::ranges::shuffle(parts, random);
    for (std::size_t rank = 0; rank < distinct * copies; ++rank) {
      auto const& part = parts[rank % distinct];
      slices.push_back(slice_at(parameter, part.offsets, part.shape).value());
    }
    if (as_mesh) continue;
    cluster.holdings.division_of[i] = cluster.holdings.divisions.size();
    cluster.holdings.divisions.emplace_back(slices);
  }
  return cluster;
}

template <typename Check>
void for_random_clusters(Check const& check) {
  auto const model = example();
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    check(model, random_cluster(model, random));
    if (testing::Test::HasFailure()) return;
  }
}

TEST(DividedPlans, EveryUnitIsWrittenOnceByARankThatHoldsIt) {
  for_random_clusters([](Model const& model, Cluster const& cluster) {
    std::vector<std::vector<Slice>> written(model.parameters.size());
    for (int rank = 0; rank < cluster.ranks; ++rank) {
      for (auto const& [parameter, slice] : make_save_plan(model, cluster.holdings, rank)) {
        auto const& held = cluster.slices[parameter][static_cast<std::size_t>(rank)];
        ASSERT_EQ(intersection(held, slice), slice) << "rank " << rank << ": " << model.parameters[parameter].fqn;
        ASSERT_FALSE(slice.empty());
        written[parameter].push_back(slice);
      }
    }
    for (std::size_t i = 0; i < written.size(); ++i) {
      ASSERT_TRUE(tile(written[i], model.parameters[i].whole())) << model.parameters[i].fqn;
    }
  });
}

TEST(DividedPlans, EveryBlockIsPutTogetherFromThoseWhoHoldPartsOfIt) {
  for_random_clusters([](Model const& model, Cluster const& cluster) {
    std::vector<PlannedSlice> whole;
    for (std::uint32_t i = 0; i < model.parameters.size(); ++i) whole.push_back({i, model.parameters[i].whole()});
    auto const receiver = cluster.ranks / 2;
    GatherOwners const owners{.holdings = cluster.holdings, .receiver = receiver};
    for (auto const& block : plan_gather(model, whole, owners).blocks) {
      auto const& parameter = model.parameters[block.parameter];
      if (cluster.holdings.division(block.parameter) == nullptr) {
        ASSERT_THAT(block.parts, IsEmpty());
        continue;
      }
      std::vector<Slice> found;
      for (auto const& [owner, slice] : block.parts) {
        auto const& slices = cluster.slices[block.parameter];
        auto const holds = [&](int rank) {
          return intersection(slices[static_cast<std::size_t>(rank)], slice) == slice;
        };
        ASSERT_TRUE(holds(owner)) << owner;
        ASSERT_EQ(owner == receiver, holds(receiver)) << "who has it itself is sent nothing";
        found.push_back(slice);
      }
      ASSERT_TRUE(tile(found, block.slice)) << parameter.fqn;
    }
  });
}

TEST(DividedPlans, WhoHoldsTheSameSharesTheWritingByBytesOverTensors) {
  Model model;
  for (auto const* const name : {"a", "b", "c", "d"}) {
    test::append_dense(model, name, DType::BF16, DType::BF16, {8});
  }
  // Two halves, on ranks 0 and 2, 1 and 3.
  Holdings holdings{.mesh = make_mesh(4)};
  Slice const low{.part = {0, 4}}, high{.part = {4, 8}};
  holdings.divisions.emplace_back(std::vector{low, high, low, high});
  for (std::uint32_t i = 0; i < 4; ++i) holdings.division_of[i] = 0;
  auto const written = [&](int rank) {
    std::vector<std::pair<std::uint32_t, Range>> parts;
    for (auto const& [parameter, slice] : make_save_plan(model, holdings, rank))
      parts.emplace_back(parameter, slice.part);
    return parts;
  };
  using Part = std::pair<std::uint32_t, Range>;
  EXPECT_THAT(written(0), ElementsAre(Part{0, {0, 4}}, Part{1, {0, 4}}));
  EXPECT_THAT(written(1), ElementsAre(Part{0, {4, 8}}, Part{1, {4, 8}}));
  EXPECT_THAT(written(2), ElementsAre(Part{2, {0, 4}}, Part{3, {0, 4}}));
  EXPECT_THAT(written(3), ElementsAre(Part{2, {4, 8}}, Part{3, {4, 8}}));
}

TEST(DividedPlans, CopiesTakeTurnsInSending) {
  Model model;
  test::append_grouped(model, "down_proj", {6, 4, 3});
  Holdings holdings{.mesh = make_mesh(3)};
  holdings.divisions.emplace_back(std::vector(3, model.parameters[0].whole()));
  holdings.division_of[0] = 0;
  std::map<int, int> sent;
  for (auto const& block : plan_gather(model, {{0, model.parameters[0].whole()}}, {.holdings = holdings}).blocks) {
    ASSERT_EQ(block.parts.size(), 1U);
    ++sent[block.parts.front().owner];
  }
  EXPECT_THAT(sent, ElementsAre(std::pair(0, 2), std::pair(1, 2), std::pair(2, 2)));
}

TEST(DividedPlans, TheHolderOfAnExpertIsTheFirstWhoHasAllOfIt) {
  Model model;
  test::append_grouped(model, "down_proj", {4, 6, 3});
  Holdings holdings{.mesh = make_mesh(4)};
  holdings.divisions.emplace_back(std::vector<Slice>{{.part = {2, 4}, .rows = {0, 3}},
                                                     {.part = {0, 2}, .rows = {0, 6}},
                                                     {.part = {2, 4}, .rows = {3, 6}},
                                                     {.part = {0, 2}, .rows = {0, 6}}});
  holdings.division_of[0] = 0;
  auto const holder = [&](std::uint64_t expert) { return holder_of_expert(model.parameters[0], 0, holdings, expert); };
  EXPECT_EQ(holder(1), 1);
  EXPECT_EQ(holder(2), std::nullopt);
}

}  // namespace
}  // namespace rankslice
