// Any part of a tensor comes from a store as from the checkpoint that it was made of.

#include <gtest/gtest.h>

#include <random>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"

#include "support/local_parts.hpp"
#include "support/temp_dir.hpp"
#include "synth/synth.hpp"

namespace rankslice {
namespace {

TEST(StoreFill, PartsOfTensorsHaveTheValuesOfTheCheckpoint) {
  test::TempDir const dir;
  synthesize(dir.file("checkpoint"), {.layers = 1, .experts = 3, .quantization = SynthQuantization::fp8});
  auto const world = make_solo_communicator();
  auto const whole = load(open_checkpoint(dir.file("checkpoint")), make_mesh(1), MeshCoordinate{});
  save_store(whole, dir.file("store.h5"), *world);
  auto const store = open_checkpoint(dir.file("store.h5"), {.store = &native_store()});
  std::mt19937 random(11);
  for (int round = 0; round < 8; ++round) {
    test::CallersTensors const callers(
        store->model, [&](Parameter const& parameter) { return test::random_part(parameter, random); });
    auto state = make_state_dict(store, callers.tensors(), make_mesh(1), {});
    fill(state);
    for (auto const& [fqn, tensor] : state.tensors) {
      auto const span = whole.tensors.at(fqn).data.span();
      auto const expected =
          test::bytes_in({.offsets = tensor.offsets, .shape = tensor.local_shape}, {span.begin(), span.end()},
                         tensor.parameter.shape, element_bytes(tensor.parameter.dtype));
      EXPECT_TRUE(callers.memory(fqn).bytes() == expected) << fqn;
      EXPECT_TRUE(callers.memory(fqn).surroundings_untouched()) << fqn;
    }
  }
}

}  // namespace
}  // namespace rankslice
