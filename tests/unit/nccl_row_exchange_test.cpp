// Rows exchanged over the NCCL communicator, whose rounds hold a GPU's stream until the other ranks come.

#include <gtest/gtest.h>

#include <algorithm>

#include "rankslice/load.hpp"

#include "row_exchange.hpp"
#include "support/nccl_stand_in/nccl_ranks.hpp"
#include "support/temp_dir.hpp"
#include "synth/synth.hpp"

namespace rankslice {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorConformance);  // only what its tests are made of is used

namespace {

TEST(NcclRowExchange, RanksThatAreAheadOfOthersDoNotWaitInACircle) {
  test::TempDir const dir;
  synthesize(dir.file("checkpoint"), {.layers = 2, .experts = 3});
  auto const source = open_checkpoint(dir.file("checkpoint"));
  for (auto const& mesh : {make_mesh(2, 1, 2), make_mesh(4, 1, 4), make_mesh(4, 2, 2)}) {
    test::run_nccl_ranks(mesh.ranks(), [&](Communicator& world) {
      auto const at = mesh.coordinate(world.rank());
      auto const alone = load(source, mesh, at);
      auto const state = load(source, mesh, at);
      auto const plan = plan_row_exchange(source->storage, source->model, {.mesh = mesh}, world.rank());
      for (auto const index : plan.parameters) {
        auto const memory = state.tensors.at(source->model.parameters[index].fqn).data.span();
        std::ranges::fill(memory, std::byte{0xa5});
      }
      // The communicator gets on with what is under way at every call of `progress`.
      exchange_rows(
          state, plan, nullptr, [&](std::uint64_t) { world.progress(); }, world);
      for (auto const& [fqn, tensor] : alone.tensors) {
        EXPECT_TRUE(std::ranges::equal(tensor.data.span(), state.tensors.at(fqn).data.span())) << fqn;
      }
    });
  }
}

}  // namespace
}  // namespace rankslice
