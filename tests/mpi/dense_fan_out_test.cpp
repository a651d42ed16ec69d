// Dense tensors that the ranks of a job read once together.

#include <gtest/gtest.h>

#include <algorithm>

#include "rankslice/load.hpp"
#include "rankslice/verify.hpp"

#include "plan/dense_shares.hpp"
#include "support/counting_communicator.hpp"
#include "support/job_fixture.hpp"

namespace rankslice::test {
namespace {

class DenseOnceTest : public JobTest {};

TEST_F(DenseOnceTest, EachRankHoldsWhatItWouldReadAloneAndSendsWhatThePlanSays) {
  auto const source = open_checkpoint(checkpoint(), world());
  auto const mesh = make_mesh(world().size());
  CountedBytes counted;
  CountingCommunicator counting(world(), counted);
  auto const state = load(source, mesh, counting, {.dense = DenseReading::once});
  auto const planned = dense_traffic(source->model, Form::hf, mesh, DenseReading::once);
  EXPECT_EQ(counted.sent, planned[static_cast<std::size_t>(world().rank())].sent);

  auto const alone = load(source, mesh, mesh.coordinate(world().rank()));
  for (auto const& [fqn, tensor] : alone.tensors) {
    EXPECT_TRUE(std::ranges::equal(tensor.data.span(), state.tensors.at(fqn).data.span())) << fqn;
  }
  EXPECT_TRUE(std::ranges::equal(alone.read.source.values(), state.read.source.values()));
  EXPECT_TRUE(verify(state, world(), {.level = VerifyLevel::reread}).ok());
}

TEST_F(DenseOnceTest, ARankThatStopsWhileSharesGoAroundStopsAll) {
  auto const source = open_checkpoint(checkpoint(), world());
  auto const stop_at_the_end = [&](Progress const& progress) {
    if (world().rank() == world().size() - 1 && progress.done == progress.total) throw Interrupted();
  };
  auto const load_once = [&] {
    (void)load(source, make_mesh(world().size()), world(),
               {.dense = DenseReading::once, .call = {.progress = stop_at_the_end}});
  };
  EXPECT_THROW(load_once(), Interrupted);
  barrier(world());
}

}  // namespace
}  // namespace rankslice::test
