// Whether the ranks together hold every row of every expert once, going by what their state dicts say of themselves.

#include "verify/coverage.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "agreed_holdings.hpp"
#include "plan/held.hpp"
#include "support/forwarding_communicator.hpp"
#include "support/job_fixture.hpp"
#include "verify/rank_tables.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t kExperts = 5, kRows = 12;

/// A dense tensor, experts in one tensor, and experts of which each is a gate and an up matrix.
Model model_of_three() {
  Model model{
      .tensors =
          {{.key = "norm", .shape = {7}, .parameter = 0},
           {.key = "down", .shape = {kExperts, 4, kRows}, .parameter = 1, .experts = {0, kExperts}, .columns = {0, 4}}},
      .parameters = {{.fqn = "native.norm", .shape = {7}, .tensors = {0}},
                     {.fqn = "native.down",
                      .shape = {kExperts, kRows, 4},
                      .layout = Layout::swapped,
                      .stacked_experts = true,
                      .tensors = {1}},
                     {.fqn = "native.gate_and_up",
                      .shape = {kExperts, kRows, 6},
                      .layout = Layout::swapped,
                      .stacked_experts = true,
                      .tensors = {}}}};
  for (std::uint64_t expert = 0; expert < kExperts; ++expert) {
    for (auto const* const matrix : {"gate", "up"}) {
      auto const first = std::string_view(matrix) == "gate" ? std::uint64_t{0} : 3;
      model.parameters[2].tensors.push_back(static_cast<std::uint32_t>(model.tensors.size()));
      model.tensors.push_back({.key = "experts." + std::to_string(expert) + "." + matrix,
                               .shape = {3, kRows},
                               .parameter = 2,
                               .experts = {expert, expert + 1},
                               .columns = {first, first + 3}});
    }
  }
  return model;
}

class Coverage : public JobTest {
 protected:
  /// What this rank holds in a mesh over all ranks. Nobody looks at bytes.
  static StateDict state_on(Mesh const& mesh) {
    auto source = std::make_shared<Checkpoint>();
    source->model = model_of_three();
    auto const coordinate = mesh.coordinate(world().rank());
    StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = source, .read = {}};
    for (std::uint32_t i = 0; i < source->model.parameters.size(); ++i) {
      auto const& parameter = source->model.parameters[i];
      ShardedTensor tensor{.parameter = parameter,
                           .local_shape = parameter.shape,
                           .offsets = Shape(parameter.shape.size()),
                           .placements = {},
                           .data = {},
                           .index = i};
      if (parameter.stacked_experts) place(tensor, held_slice(parameter, mesh, coordinate));
      state.tensors.emplace(parameter.fqn, std::move(tensor));
    }
    return state;
  }
  static void place(ShardedTensor& tensor, Slice const& slice) {
    tensor.local_shape[0] = slice.part.size();
    tensor.local_shape[1] = slice.rows.size();
    tensor.offsets[0] = slice.part.begin;
    tensor.offsets[1] = slice.rows.begin;
  }
  static std::vector<std::string> found(StateDict const& state) {
    VerifyReport report;
    check_coverage(state, agree_on_holdings(state, world()), report.mismatches);
    share_mismatches(report, world());
    std::vector<std::string> what;
    for (auto const& mismatch : report.mismatches) what.push_back(mismatch.what);
    return what;
  }
  /// With half of each expert's rows on one half of the ranks, where there are two halves.
  static Mesh halves() { return make_mesh(world().size(), 0, world().size() % 2 == 0 ? 2 : 1); }
};

TEST_F(Coverage, Rule62_IsCompleteOnEveryMesh) {
  auto const ranks = world().size();
  for (int ep = 1; ep <= ranks; ++ep) {
    for (int ep_shard = 1; ep * ep_shard <= ranks; ++ep_shard) {
      if (ranks % (ep * ep_shard) != 0) continue;
      EXPECT_THAT(found(state_on({.ep_replicate = ranks / ep / ep_shard, .ep_shard = ep_shard, .ep = ep})), IsEmpty());
    }
  }
}

TEST_F(Coverage, OneReplicaNeedsNoCommunicatorOfItsOwn) {
  class Unsplit final : public ForwardingCommunicator {
   public:
    using ForwardingCommunicator::ForwardingCommunicator;
    [[nodiscard]] std::unique_ptr<Communicator> split(int) override { throw std::logic_error("it was split"); }
  } whole(world());
  auto const state = state_on(halves());
  auto const holdings = agree_on_holdings(state, whole);
  EXPECT_NO_THROW(RankTables(state, holdings, whole));
}

TEST_F(Coverage, Rule62_NamesExpertsThatNoRankHolds) {
  auto state = state_on(halves());
  place(state.tensors.at("native.down"), {.part = {0, 0}, .rows = {0, kRows}});
  EXPECT_THAT(found(state), ElementsAre("expert 0 of down: held by no rank", "expert 1 of down: held by no rank",
                                        "expert 2 of down: held by no rank", "expert 3 of down: held by no rank",
                                        "expert 4 of down: held by no rank"));
}

TEST_F(Coverage, NamesSplitExpertsByEachOfTheirKeys) {
  auto state = state_on(halves());
  auto& tensor = state.tensors.at("native.gate_and_up");
  auto held = tensor.slice();
  held.part.end = std::min(held.part.end, kExperts - 1);
  place(tensor, held);
  EXPECT_THAT(found(state),
              ElementsAre("expert 4 of experts.4.gate: held by no rank", "expert 4 of experts.4.up: held by no rank"));
}

TEST_F(Coverage, Rule62_NamesAnExpertOfWhichHalfTheRowsAreOnNoRank) {
  auto state = state_on(halves());
  auto& tensor = state.tensors.at("native.down");
  auto const held = tensor.slice();
  if (held.part.begin <= 4 && 4 < held.part.end) {  // keeps of what it has only expert 4, up to row 6
    place(tensor, {.part = {4, 5}, .rows = {std::min(held.rows.begin, kRows / 2), kRows / 2}});
  }
  auto const what = found(state);
  ASSERT_FALSE(what.empty());
  EXPECT_EQ(what.back(), "expert 4 of down: rows [6, 12) of 12 held by no rank");
}

TEST_F(Coverage, NamesAnExpertOfWhichOneHalfIsThereTwiceAndTheOtherNot) {
  if (world().size() % 2 != 0) GTEST_SKIP() << "needs ranks for ep_shard 2";
  auto state = state_on(halves());
  auto& tensor = state.tensors.at("native.down");
  if (state.coordinate.ep_shard == 1) place(tensor, {.part = tensor.slice().part, .rows = {0, kRows / 2}});
  auto const what = found(state);
  ASSERT_EQ(what.size(), kExperts);
  EXPECT_EQ(what.front(), "expert 0 of down: rows [6, 12) of 12 held by no rank");
}

TEST_F(Coverage, TakesTheSameSliceOnSeveralRanksAsCopies) {
  auto const ranks = world().size();
  auto state = state_on(make_mesh(ranks));
  place(state.tensors.at("native.down"), {.part = {0, kExperts}, .rows = {0, kRows}});
  auto& tensor = state.tensors.at("native.gate_and_up");
  auto const half = state.coordinate.ep % 2;
  if (ranks > 1)
    place(tensor, {.part = {0, kExperts}, .rows = {half == 0 ? 0 : kRows / 3, half == 0 ? kRows / 3 : kRows}});
  EXPECT_THAT(found(state), IsEmpty());
}

TEST_F(Coverage, NamesTheRanksWhoseSlicesOverlapWithoutBeingTheSame) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto state = state_on(make_mesh(world().size()));
  auto const first = world().rank() == 0;
  place(state.tensors.at("native.down"), {.part = {first ? 0U : 2U, first ? 3U : 5U}, .rows = {0, kRows}});
  EXPECT_THAT(found(state), ElementsAre("expert 2 of down: held by rank 0 in [0, 3) × [0, 12) and by rank 1 in "
                                        "[2, 5) × [0, 12), which overlap without being the same"));
}

TEST_F(Coverage, NamesElementsOfADenseTensorThatAreMissingOrInTwoCuts) {
  if (world().size() != 3) GTEST_SKIP() << "needs three ranks";
  auto state = state_on(make_mesh(3));
  auto& tensor = state.tensors.at("native.norm");
  std::array<Range, 3> const held{Range{4, 7}, Range{0, 2}, Range{3, 5}};
  auto const& mine = held.at(static_cast<std::size_t>(world().rank()));
  tensor.offsets = {mine.begin};
  tensor.local_shape = {mine.size()};
  EXPECT_THAT(found(state), ElementsAre("norm: elements [2, 3) of 7 held by no rank",
                                        "norm: elements [4, 5) of 7 held by rank 2 in [3, 5) and by rank 0 in [4, 7), "
                                        "which overlap without being the same"));
}

// Of two replicas one lacks an expert: its rank holds something else than the other's then.
TEST_F(Coverage, NamesAnExpertThatIsInOneReplicaOnly) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for ep_replicate 2 × ep 2";
  auto state = state_on({.ep_replicate = 2, .ep_shard = 1, .ep = 2});
  auto& tensor = state.tensors.at("native.down");
  if (world().rank() == 2) place(tensor, {.part = {1, 3}, .rows = {0, kRows}});
  auto const what = found(state);
  ASSERT_EQ(what.size(), 2U);
  EXPECT_EQ(what.front(),
            "expert 1 of down: held by rank 0 in [0, 3) × [0, 12) and by rank 2 in [1, 3) × [0, 12), "
            "which overlap without being the same");
}

TEST_F(Coverage, NamesADenseTensorThatIsNotThereOnce) {
  auto state = state_on(halves());
  state.tensors.erase("native.norm");
  EXPECT_THAT(found(state), ElementsAre("norm: missing"));
}

TEST_F(Coverage, OfAStackedTensorThatIsNotThereNamesEveryExpert) {
  auto state = state_on(halves());
  state.tensors.erase("native.down");
  EXPECT_EQ(found(state).size(), kExperts);
}

}  // namespace
}  // namespace rankslice::test
