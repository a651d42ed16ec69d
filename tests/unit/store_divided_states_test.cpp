// States whose ranks hold other slices than their mesh gives them go into a store and come back.

#include <gtest/gtest.h>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/verify.hpp"

#include "support/divided_state.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice {
namespace {

TEST(StoreDividedStates, AreStoredAsTheWholeOnOneRankIs) {
  test::TempDir const dir;
  synthesize(dir.file("checkpoint"), {.layers = 1, .experts = 10});
  auto const whole = load(open_checkpoint(dir.file("checkpoint")), make_mesh(1), MeshCoordinate{});
  save_store(whole, dir.file("whole.h5"), *make_solo_communicator());
  for (auto const& way : test::ways_to_divide()) {
    test::run_ranks(way.mesh.ranks(), [&](Communicator& world) {
      save_store(test::divide(whole, way, world.rank()), dir.file("store.h5"), world, {.overwrite = true});
    });
    EXPECT_TRUE(test::file_bytes(dir.file("store.h5")) == test::file_bytes(dir.file("whole.h5"))) << way.name;
  }
}

}  // namespace
}  // namespace rankslice
