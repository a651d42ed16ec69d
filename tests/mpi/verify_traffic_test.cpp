// What verification passes between ranks: as computed for any cluster, and as counted here.

#include <gtest/gtest.h>

#include "rankslice/load.hpp"
#include "rankslice/verify.hpp"

#include "support/counting_communicator.hpp"
#include "support/job_fixture.hpp"
#include "support/model_catalog.hpp"
#include "support/raw_checkpoint.hpp"
#include "verify/traffic.hpp"

namespace rankslice::test {
namespace {

constexpr std::uint64_t kRest = 4096;  // what is the same for every model

class Traffic : public JobTest {
 protected:
  static std::shared_ptr<Checkpoint const> written(std::string const& name, Qwen35Shape const& shape,
                                                   OpenOptions const& options = {}) {
    on_every_rank(world(), [&] {
      if (world().rank() != 0 || std::filesystem::exists(path(name))) return;
      write_checkpoint(path(name), make_catalog(shape), make_config_json(shape));
    });
    return open_checkpoint(path(name), world(), options);
  }
  static CountedBytes counted(std::shared_ptr<Checkpoint const> const& source, VerifyLevel level) {
    CountedBytes bytes;
    CountingCommunicator counting(world(), bytes);
    auto const state = load(source, make_mesh(world().size()), world(), {.verify = level});
    EXPECT_TRUE(verify(state, counting, {.level = level}).ok());
    return bytes;
  }
};

TEST_F(Traffic, IsAsComputedAtEveryLevelAndNoMoreThanTheSameForEveryModelBeside) {
  auto small = tiny_qwen35();
  auto large = small;
  large.experts = 500;
  auto const sources = {written("few", small), written("many", large),
                        written("few", small, {.dtype = DType::F32})};  // the last converts
  for (auto const level : {VerifyLevel::coverage, VerifyLevel::full, VerifyLevel::reread}) {
    std::vector<std::uint64_t> beside;
    for (auto const& source : sources) {
      auto const computed = verify_traffic(source->model, level);
      auto const found = counted(source, level);
      EXPECT_GE(found.summed, computed.summed);
      beside.push_back(found.summed - computed.summed + found.broadcast + found.gathered);
      EXPECT_LE(beside.back(), kRest);
      EXPECT_EQ(found.sent, world().size() > 1 ? computed.sent : 0);
    }
    EXPECT_EQ(beside[0], beside[1]) << "grows with the model";
  }
}

TEST_F(Traffic, TakesAsManyCallsForEveryModel) {
  auto large = tiny_qwen35();
  large.experts = 500;
  for (auto const level : {VerifyLevel::coverage, VerifyLevel::full, VerifyLevel::reread}) {
    EXPECT_EQ(counted(written("few", tiny_qwen35()), level).collectives,
              counted(written("many", large), level).collectives);
  }
}

TEST_F(Traffic, OfNoVerificationIsNothing) {
  EXPECT_EQ(verify_traffic(written("few", tiny_qwen35())->model, VerifyLevel::off).summed, 0U);
}

// A dense tensor and 4 experts: 5 numbers, 4 of them summed.
TEST_F(Traffic, IsEightBytesForEachNumber) {
  Model model{.tensors = {{.key = "norm", .shape = {7}, .parameter = 0},
                          {.key = "down", .shape = {4, 2, 2}, .parameter = 1, .experts = {0, 4}, .columns = {0, 2}}},
              .parameters = {{.fqn = "norm", .shape = {7}, .tensors = {0}},
                             {.fqn = "down", .shape = {4, 2, 2}, .stacked_experts = true, .tensors = {1}}}};
  auto const coverage = verify_traffic(model, VerifyLevel::coverage);
  EXPECT_EQ(coverage.summed, 0U);
  auto const full = verify_traffic(model, VerifyLevel::full);
  EXPECT_EQ(full.summed, 4 * 8U);
  EXPECT_EQ(full.sent, 0U);
  auto const reread = verify_traffic(model, VerifyLevel::reread);
  EXPECT_EQ(reread.sent, 5 * 8U);
  EXPECT_EQ(reread.wire_bytes(1), 0U);
  EXPECT_EQ(reread.wire_bytes(2), 32U + 40);  // each byte once there and once back, for half of them
  EXPECT_EQ(reread.wire_bytes(4), 32U * 3 / 2 + 40);
}

}  // namespace
}  // namespace rankslice::test
