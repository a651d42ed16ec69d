// The main job with tensors on a device, here one on the CPU: load, prove, store, shard, export, compare bytes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/device_bytes.hpp"
#include "support/job_fixture.hpp"
#include "support/late_device.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

class DevicePipeline : public JobTest {
 protected:
  /// Every other rank on a device: what ranks do together must not depend on where their tensors are.
  StateDict load_all(OpenOptions const& open = {}) {
    auto const source = open_checkpoint(checkpoint(), world(), open);
    auto const on_device = world().rank() % 2 == 0;
    return load(source, make_mesh(world().size()), world(), {.device = on_device ? device_ : nullptr});
  }

  static void expect_source(std::string const& exported) {
    if (world().rank() != 0) return;
    EXPECT_TRUE(files_below(checkpoint()) == files_below(exported)) << "files differ";
  }

  std::shared_ptr<LateDevice> device_ = std::make_shared<LateDevice>();
};

TEST_F(DevicePipeline, IsProvedAndGivesTheSourceBackByteForByte) {
  auto const state = load_all();
  EXPECT_TRUE(verify(state, world()).ok());
  to_hf(state, path("from_device"), world());
  expect_source(path("from_device"));
}

TEST_F(DevicePipeline, IsStoredAndShardedLikeHostMemory) {
  auto const state = load_all();
  save_store(state, path("device.h5"), world());
  auto const store = open_checkpoint(path("device.h5"), world(), {.store = &native_store()});
  EXPECT_TRUE(verify(*store, world()).ok());
  to_hf(*store, path("from_device_store"), world());
  expect_source(path("from_device_store"));

  save_shards(state, path("device_shards"), world());
  to_hf(*open_checkpoint(path("device_shards"), world()), path("from_device_shards"), world());
  expect_source(path("from_device_shards"));
}

// What is held in F32 goes back as the BF16 that it was.
TEST_F(DevicePipeline, ConvertedValuesGoBack) {
  auto const state = load_all({.dtype = DType::F32});
  EXPECT_TRUE(verify(state, world()).ok());
  to_hf(state, path("narrowed"), world(), {.layout = ExportLayout::source});
  expect_source(path("narrowed"));
}

TEST_F(DevicePipeline, AnElementThatChangedOnADeviceIsFound) {
  auto const state = load_all();
  auto const& tensor = state.tensors.at("lm_head.weight");
  if (world().rank() == 0) {
    auto bytes = copy_of(tensor.data);
    bytes.front() ^= std::byte{1};
    fill(tensor.data, bytes);
  }
  auto const report = verify(state, world());
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.mismatches.front().tensor, "lm_head.weight");
}

TEST_F(DevicePipeline, ADeviceThatFailsOnOneRankIsTheErrorOfAll) {
  if (world().rank() == 0) device_->calls_until_failure = 40;
  try {
    (void)load_all();
    ADD_FAILURE() << "no error";
  } catch (DeviceError const& error) {
    EXPECT_EQ(error.rank, 0);
    EXPECT_THAT(error.what(), HasSubstr("late:0"));
  }
}

}  // namespace
}  // namespace rankslice::test
