// Loading onto a device, which here is one on the CPU that keeps to the contract and no further.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "support/device_load_suite.hpp"
#include "support/late_device.hpp"

namespace rankslice {

std::shared_ptr<Device> test::make_device() { return std::make_shared<LateDevice>(); }

namespace {

using test::LateDevice;
using testing::HasSubstr;

class DeviceFailure : public testing::Test {
 protected:
  DeviceFailure() {
    synthesize(dir_.file("checkpoint"), {.layers = 1, .experts = 2, .text_only = true});
    source_ = open_checkpoint(dir_.file("checkpoint"));
  }
  test::TempDir dir_;
  std::shared_ptr<Checkpoint const> source_;
  std::shared_ptr<LateDevice> device_ = std::make_shared<LateDevice>();
};

// Whichever call it is.
TEST_F(DeviceFailure, EndsTheLoadAndGivesAllMemoryBack) {
  auto const load_once = [&] { return load(source_, make_mesh(1), MeshCoordinate{}, {.device = device_}); };
  (void)load_once();
  auto const calls = UINT64_MAX - device_->calls_until_failure;
  auto const of_device = device_->held_bytes();
  ASSERT_GT(calls, 100U);
  for (std::uint64_t call = 0; call < calls; ++call) {
    device_->calls_until_failure = call;
    try {
      (void)load_once();
      ADD_FAILURE() << "no error of call " << call;
    } catch (DeviceError const& error) {
      EXPECT_THAT(error.what(), HasSubstr("late:0"));
    }
    EXPECT_EQ(device_->held_bytes(), of_device);
  }
}

TEST_F(DeviceFailure, HugePagesAreNotForItsMemory) {
  LoadOptions const options{.device = device_, .huge_pages = HugePages::on};
  EXPECT_THROW((void)load(source_, make_mesh(1), MeshCoordinate{}, options), UsageError);
}

TEST_F(DeviceFailure, OfADownloadOrDigestEndsTheProof) {
  auto const state = load(source_, make_mesh(1), MeshCoordinate{}, {.device = device_});
  device_->calls_until_failure = 3;
  EXPECT_THROW((void)verify(state), DeviceError);
}

TEST(DeviceMemory, IsNotTakenForTheHosts) {
  auto const device = std::make_shared<LateDevice>();
  Buffer const buffer{.data = device->allocate(8), .bytes = 8, .device = device};
  EXPECT_THROW((void)buffer.span(), DeviceError);
}

TEST(DeviceOfRank, RanksOfAHostTakeTurns) {
  EXPECT_EQ(device_of_rank(0, 4), 0);
  EXPECT_EQ(device_of_rank(3, 4), 3);
  EXPECT_EQ(device_of_rank(4, 4), 0);
  EXPECT_EQ(device_of_rank(7, 1), 0) << "each rank sees one GPU alone";
  EXPECT_THROW((void)device_of_rank(0, 0), DeviceError);
}

}  // namespace
}  // namespace rankslice
