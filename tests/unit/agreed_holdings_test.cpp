// What ranks learn of one another's slices, and what that costs.

#include "agreed_holdings.hpp"

#include <gtest/gtest.h>

#include <set>

#include "plan/held.hpp"
#include "support/counting_communicator.hpp"
#include "support/divided_state.hpp"
#include "support/hand_model.hpp"
#include "support/thread_world.hpp"

namespace rankslice {
namespace {

/// Layers alike, without values.
std::shared_ptr<Checkpoint const> model_of_layers(int layers) {
  auto source = std::make_shared<Checkpoint>();
  for (int layer = 0; layer < layers; ++layer) {
    auto const prefix = "layers." + std::to_string(layer) + ".";
    test::append_dense(source->model, prefix + "norm", DType::BF16, DType::BF16, {10});
    test::append_dense(source->model, prefix + "proj", DType::BF16, DType::BF16, {10, 4});
    test::append_grouped(source->model, prefix + "down_proj", {10, 6, 4});
  }
  return source;
}

/// What a rank holds, without memory.
StateDict state_of(std::shared_ptr<Checkpoint const> const& source, test::WayToDivide const& way, int rank) {
  StateDict state{
      .tensors = {}, .mesh = way.mesh, .coordinate = way.mesh.coordinate(rank), .source = source, .read = {}};
  for (std::uint32_t i = 0; i < source->model.parameters.size(); ++i) {
    auto const& parameter = source->model.parameters[i];
    auto const part = way.part(parameter, rank);
    state.tensors[parameter.fqn] = {.parameter = parameter,
                                    .local_shape = part.shape,
                                    .offsets = part.offsets,
                                    .placements = {},
                                    .data = {},
                                    .index = i};
  }
  return state;
}

test::CountedBytes cost_of(int layers, test::WayToDivide const& way) {
  test::CountedBytes bytes;
  test::run_ranks(way.mesh.ranks(), [&](Communicator& world) {
    test::CountedBytes mine;
    test::CountingCommunicator counting(world, mine);
    (void)agree_on_holdings(state_of(model_of_layers(layers), way, world.rank()), counting);
    if (world.rank() == 1) bytes = mine;
  });
  return bytes;
}

/// As the mesh says.
test::WayToDivide as_mesh(Mesh const& mesh) {
  return {"mesh", mesh, [mesh](Parameter const& parameter, int rank) {
            auto part = test::whole_part(parameter.shape);
            if (!parameter.stacked_experts) return part;
            auto const slice = held_slice(parameter, mesh, mesh.coordinate(rank));
            part.offsets = {slice.part.begin, slice.rows.begin, 0};
            part.shape = {slice.part.size(), slice.rows.size(), parameter.shape[2]};
            return part;
          }};
}

TEST(AgreedHoldings, AreThoseOfEveryRankForEveryParameter) {
  auto const source = model_of_layers(3);
  for (auto const& way : test::ways_to_divide()) {
    test::run_ranks(way.mesh.ranks(), [&](Communicator& world) {
      auto const holdings = agree_on_holdings(state_of(source, way, world.rank()), world);
      for (int rank = 0; rank < way.mesh.ranks(); ++rank) {
        for (auto const& [fqn, tensor] : state_of(source, way, rank).tensors) {
          EXPECT_EQ(held_share(source->model, tensor.index, holdings, rank).slice, tensor.slice()) << way.name << fqn;
        }
      }
    });
  }
}

TEST(AgreedHoldings, OfWhatTheMeshSaysAreNoneAndCostTheSameForEveryModel) {
  Mesh const mesh{.ep_replicate = 1, .ep_shard = 2, .ep = 2};
  test::run_ranks(4, [&](Communicator& world) {
    EXPECT_TRUE(agree_on_holdings(state_of(model_of_layers(2), as_mesh(mesh), world.rank()), world).divisions.empty());
  });
  auto const few = cost_of(2, as_mesh(mesh)), many = cost_of(100, as_mesh(mesh));
  EXPECT_EQ(few.gathered + few.broadcast + few.summed, many.gathered + many.broadcast + many.summed);
}

TEST(AgreedHoldings, OfAnEmptyPartItDoesNotMatterWhereItLies) {
  Mesh const mesh = make_mesh(12);  // for ten experts
  test::run_ranks(12, [&](Communicator& world) {
    auto state = state_of(model_of_layers(1), as_mesh(mesh), world.rank());
    if (world.rank() == 11) state.tensors.at("layers.0.down_projs").offsets = {0, 0, 0};
    EXPECT_TRUE(agree_on_holdings(state, world).divisions.empty());
  });
}

TEST(AgreedHoldings, OfEveryFurtherLayerTakeFourBytesForEachParameter) {
  auto const few = cost_of(2, test::fsdp(4)), many = cost_of(100, test::fsdp(4));
  EXPECT_EQ(many.gathered - few.gathered, 98 * 3 * 4U);
}

TEST(AgreedHoldings, OfATensorThatOneRankLacksAreNothingThere) {
  auto const source = model_of_layers(1);
  test::run_ranks(3, [&](Communicator& world) {
    auto state = state_of(source, as_mesh(make_mesh(3)), world.rank());
    if (world.rank() == 1) state.tensors.erase("layers.0.norm");
    auto const holdings = agree_on_holdings(state, world);
    ASSERT_EQ(holdings.division_of.size(), 1U);
    auto const& parts = holdings.division(0)->parts();
    ASSERT_EQ(parts.size(), 1U);
    EXPECT_EQ(parts[0].slice, source->model.parameters[0].whole());
    EXPECT_EQ(parts[0].holders, (std::vector{0, 2}));
  });
}

TEST(AgreedHoldings, OfRanksWithOtherNumbersOfParametersAreRefused) {
  for (auto const layers : {2, 9}) {  // 12 bytes more, and 96, which could be those of three slices
    auto const thrown = test::exceptions_of_ranks(2, [&](Communicator& world) {
      auto const source = model_of_layers(world.rank() == 0 ? layers : 1);
      (void)agree_on_holdings(state_of(source, test::fsdp(2), world.rank()), world);
    });
    EXPECT_THROW(std::rethrow_exception(thrown[0]), VerifyError);
  }
}

TEST(AgreedHoldings, OfParametersThatAreDividedAlikeAreOneDivision) {
  test::run_ranks(3, [&](Communicator& world) {
    auto const holdings = agree_on_holdings(state_of(model_of_layers(5), test::fsdp(3), world.rank()), world);
    EXPECT_EQ(holdings.division_of.size(), 15U);
    EXPECT_EQ(holdings.divisions.size(), 3U);
  });
}

TEST(AgreedHoldings, AreFoundAroundAnyExpertsThoughPartsNestAndHaveGaps) {
  Division const division(
      {{{0, 10}, {0, 4}}, {{2, 3}, {4, 6}}, {{3, 5}, {4, 6}}, {{8, 9}, {4, 6}}, {{12, 14}, {0, 6}}});
  for (std::uint64_t begin = 0; begin < 16; ++begin) {
    for (auto end = begin + 1; end <= 16; ++end) {
      auto const around = division.parts_around({begin, end});
      for (auto const& part : division.parts()) {
        auto const has_some = part.slice.part.begin < end && begin < part.slice.part.end;
        auto const is_in = &part >= around.data() && &part < around.data() + around.size();
        EXPECT_TRUE(is_in || !has_some) << begin << ' ' << end << ' ' << to_string(part.slice);
      }
    }
  }
  EXPECT_TRUE(division.parts_around({10, 12}).empty());
  EXPECT_EQ(division.parts_around({13, 14}).size(), 1U);
}

}  // namespace
}  // namespace rankslice
