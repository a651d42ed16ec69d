// Whether the ranks together hold every row of every expert once, going by what their state dicts say of themselves.

#include "verify/coverage.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "plan/held.hpp"
#include "support/forwarding_communicator.hpp"
#include "support/job_fixture.hpp"
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
    MeshTables mesh(state, world());
    check_coverage(state, mesh, report.mismatches);
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
  MeshTables mesh(state, whole);
  EXPECT_EQ(mesh.speaks_for_replica(), world().rank() == 0);
  VerifyReport report;
  check_coverage(state, mesh, report.mismatches);
  EXPECT_THAT(report.mismatches, IsEmpty());
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
  EXPECT_EQ(what.back(), "expert 4 of down: some of its 12 rows are held by several ranks or by none: 6 in all");
}

TEST_F(Coverage, NamesAnExpertOfWhichOneHalfIsThereTwiceAndTheOtherNot) {
  if (world().size() % 2 != 0) GTEST_SKIP() << "needs ranks for ep_shard 2";
  auto state = state_on(halves());
  auto& tensor = state.tensors.at("native.down");
  if (state.coordinate.ep_shard == 1) place(tensor, {.part = tensor.slice().part, .rows = {0, kRows / 2}});
  auto const what = found(state);
  ASSERT_EQ(what.size(), kExperts);
  EXPECT_EQ(what.front(), "expert 0 of down: some of its 12 rows are held by several ranks or by none: 12 in all");
}

TEST_F(Coverage, Rule62_CountsTheRanksThatHoldAllOfAnExpert) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto state = state_on(make_mesh(world().size()));
  place(state.tensors.at("native.down"), {.part = {3, 5}, .rows = {0, kRows}});
  auto const ranks = std::to_string(world().size());
  EXPECT_THAT(found(state), ElementsAre("expert 0 of down: held by no rank", "expert 1 of down: held by no rank",
                                        "expert 2 of down: held by no rank",
                                        "expert 3 of down: held by " + ranks + " ranks, expected 1",
                                        "expert 4 of down: held by " + ranks + " ranks, expected 1"));
}

// Two halves on each of two ranks are as much as the whole on two.
TEST_F(Coverage, SeesThatBothHalvesAreThereTwice) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for ep_shard 2 × ep 2";
  auto state = state_on(halves());
  auto& tensor = state.tensors.at("native.down");
  place(tensor, {.part = {0, kExperts}, .rows = tensor.slice().rows});
  auto const what = found(state);
  ASSERT_EQ(what.size(), kExperts);
  EXPECT_EQ(what.front(), "expert 0 of down: held by 2 ranks, expected 1");
}

TEST_F(Coverage, SaysInWhichReplicaAnExpertIsMissing) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for ep_replicate 2 × ep 2";
  for (int const replica : {0, 1}) {
    auto state = state_on({.ep_replicate = 2, .ep_shard = 1, .ep = 2});
    auto& tensor = state.tensors.at("native.down");
    if (state.coordinate == MeshCoordinate{.ep_replicate = replica, .ep_shard = 0, .ep = 0}) {
      place(tensor, {.part = {1, 3}, .rows = {0, kRows}});
    }
    EXPECT_THAT(found(state), ElementsAre("expert 0 of down: held by no rank, in replica " + std::to_string(replica)));
  }
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
