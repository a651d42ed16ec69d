// Shares that go around over the NCCL communicator, whose rounds hold a GPU's stream until the other ranks come.

#include <gtest/gtest.h>

#include <algorithm>

#include "rankslice/load.hpp"

#include "dense_ring.hpp"
#include "support/hand_model.hpp"
#include "support/nccl_stand_in/nccl_ranks.hpp"

namespace rankslice {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorConformance);  // only what its tests are made of is used

namespace {

TEST(NcclDenseRing, NoRankWaitsInACircle) {
  Model model;
  test::append_dense(model, "embed", DType::U8, DType::U8, {60'000});
  test::append_dense(model, "norm", DType::U8, DType::U8, {77});
  for (int ranks = 2; ranks <= 4; ++ranks) {
    auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(ranks)}, ranks);
    test::run_nccl_ranks(
        ranks,
        [&](Communicator& world) {
          std::vector<std::vector<std::byte>> bytes;
          std::vector<Buffer> memory;
          for (auto const& parameter : model.parameters) {
            bytes.emplace_back(parameter.part_count());
            auto* const data = bytes.back().data();
            memory.push_back({.data = {data, [](std::byte*) {}}, .bytes = parameter.part_count()});
          }
          for (auto const& [index, slice] : shares.by_rank[static_cast<std::size_t>(world.rank())]) {
            for (auto at = slice.part.begin; at < slice.part.end; ++at) bytes[index][at] = std::byte{0x5a};
          }
          // The communicator gets on with what is under way at every call of `progress`.
          DenseRing(model, shares, memory, world, 5000).hand_around([&](std::uint64_t) { world.progress(); });
          for (auto const& tensor : bytes) {
            EXPECT_EQ(std::ranges::count(tensor, std::byte{0x5a}), static_cast<std::ptrdiff_t>(tensor.size()));
          }
        },
        {.staging_bytes = 4096});
  }
}

}  // namespace
}  // namespace rankslice
