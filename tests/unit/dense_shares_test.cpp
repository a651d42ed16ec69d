// How ranks divide the reading of dense tensors, and what travels then: all of it by counting.

#include "plan/dense_shares.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "support/hand_model.hpp"

namespace rankslice::test {
namespace {

/// Dense tensors of all sizes and element sizes, an empty one, and experts between them.
Model mixed_model() {
  Model model;
  append_dense(model, "embed", DType::BF16, DType::BF16, {101, 16});
  append_grouped(model, "layers.0.down_proj", {3, 4, 8});
  append_dense(model, "norm", DType::F32, DType::F32, {7});
  append_dense(model, "scalar", DType::I64, DType::I64, {});
  append_dense(model, "nothing", DType::BF16, DType::BF16, {0, 5});
  append_dense(model, "bytes", DType::U8, DType::U8, {333});
  append_dense(model, "widened", DType::BF16, DType::F32, {50, 3});
  return model;
}

/// The same with a matrix of codes, of 6400 bytes, and a scale for each 128 x 128 of them.
Model quantised_model() {
  auto model = mixed_model();
  append_dense(model, "codes", DType::F8_E4M3, DType::BF16, {100, 64});
  model.parameters.back().scale_bytes = 4;
  return model;
}

std::uint64_t dense_bytes(Model const& model, Form form) {
  std::uint64_t bytes = 0;
  for (auto const& parameter : model.parameters) {
    if (parameter.stacked_experts) continue;
    bytes += parameter.bytes(parameter.whole(), form) + parameter.scale_bytes_for(parameter.whole(), form);
  }
  return bytes;
}

TEST(DenseShares, AllRanksTogetherReadEveryDenseElementOnceAndNoExpert) {
  for (auto const& model : {mixed_model(), quantised_model()}) {
    for (auto const form : {Form::hf, Form::native}) {
      for (int ranks = 1; ranks <= 40; ++ranks) {
        auto const shares = share_dense(model, form, {.mesh = make_mesh(ranks)}, ranks);
        ASSERT_EQ(shares.by_rank.size(), static_cast<std::size_t>(ranks));
        std::map<std::uint32_t, std::vector<int>> times;
        for (auto const& share : shares.by_rank) {
          for (auto const& [parameter, slice] : share) {
            EXPECT_FALSE(slice.empty());
            auto& elements = times[parameter];
            elements.resize(model.parameters[parameter].part_count());
            for (auto i = slice.part.begin; i < slice.part.end; ++i) ++elements.at(i);
          }
        }
        for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
          auto const& parameter = model.parameters[i];
          EXPECT_EQ(shares.shared[i], !parameter.stacked_experts);
          auto const expected = parameter.stacked_experts ? 0 : parameter.part_count();
          EXPECT_EQ(std::ranges::count(times[i], 1), static_cast<std::ptrdiff_t>(expected)) << parameter.fqn;
          EXPECT_EQ(times[i].size(), expected) << parameter.fqn;
        }
      }
    }
  }
}

TEST(DenseShares, RanksReadEquallyMuchButForAnElementAtEachBound) {
  auto const model = mixed_model();
  auto const fair = dense_bytes(model, Form::hf) / 5;
  for (auto const& bytes : dense_traffic(model, Form::hf, make_mesh(5), DenseReading::once)) {
    EXPECT_NEAR(static_cast<double>(bytes.read), static_cast<double>(fair), 16);
  }
}

// All scales would be read with each part.
TEST(DenseShares, ATensorWithBlockScalesIsReadByOneRank) {
  auto const model = quantised_model();
  auto const codes = static_cast<std::uint32_t>(model.parameters.size() - 1);
  for (int ranks = 1; ranks <= 9; ++ranks) {
    std::uint64_t read = 0;
    int readers = 0;
    for (auto const& share : share_dense(model, Form::hf, {.mesh = make_mesh(ranks)}, ranks).by_rank) {
      readers += static_cast<int>(std::ranges::count(share, codes, &PlannedSlice::parameter));
    }
    EXPECT_EQ(readers, 1);
    for (auto const& bytes : dense_traffic(model, Form::hf, make_mesh(ranks), DenseReading::once)) read += bytes.read;
    EXPECT_EQ(read, dense_bytes(model, Form::hf));
  }
}

TEST(DenseShares, WhatSomeRankDoesNotHoldWholeEachReadsForItself) {
  auto const model = mixed_model();
  Holdings holdings{.mesh = make_mesh(2), .divisions = {}, .division_of = {{0, 0}}};
  holdings.divisions.emplace_back(std::vector<Slice>{{.part = {0, 800}}, {.part = {800, 1616}}});
  auto const shares = share_dense(model, Form::hf, holdings, 2);
  EXPECT_FALSE(shares.shared[0]);
  EXPECT_TRUE(shares.shared[2]);
  std::vector<PlannedSlice> const held{{0, {.part = {800, 1616}}}, {2, model.parameters[2].whole()}};
  auto const read = slices_read(shares, held, 1);
  EXPECT_EQ(std::ranges::count(read, 0U, &PlannedSlice::parameter), 1);
  for (auto const& [parameter, slice] : read) {
    if (parameter == 0) {
      EXPECT_EQ(slice, (Slice{.part = {800, 1616}}));
    }
  }
}

TEST(DenseShares, PiecesMakeUpEachShareInOrderAndAreAsManyOnEveryRank) {
  auto const model = quantised_model();
  for (std::uint64_t most : {8U, 64U, 500U, 4096U, 1U << 20U}) {
    for (int ranks : {1, 2, 5, 30}) {
      auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(ranks)}, ranks);
      auto const pieces = share_pieces(model, shares, most);
      for (std::size_t rank = 0; rank < pieces.size(); ++rank) {
        EXPECT_EQ(pieces[rank].size(), pieces.front().size());
        std::vector<PlannedSlice> found;
        for (auto const& piece : pieces[rank]) {
          EXPECT_LE(piece.bytes, most);
          EXPECT_EQ(piece.bytes, plan_bytes(model, piece.slices, Form::native));
          found.insert(found.end(), piece.slices.begin(), piece.slices.end());
        }
        auto const by_place = [](PlannedSlice const& a, PlannedSlice const& b) {
          return std::pair(a.parameter, a.slice) < std::pair(b.parameter, b.slice);
        };
        std::ranges::sort(found, by_place);
        std::vector<PlannedSlice> joined;
        for (auto const& item : found) {
          auto const goes_on = !joined.empty() && joined.back().parameter == item.parameter &&
                               joined.back().slice.part.end == item.slice.part.begin;
          if (goes_on) {
            joined.back().slice.part.end = item.slice.part.end;
          } else {
            joined.push_back(item);
          }
        }
        ASSERT_EQ(joined.size(), shares.by_rank[rank].size());
        for (std::size_t i = 0; i < joined.size(); ++i) EXPECT_EQ(joined[i].slice, shares.by_rank[rank][i].slice);
      }
    }
  }
}

TEST(DenseShares, ARankPassesOnAllButTheNextOnesShareAndGetsAllButItsOwn) {
  auto const model = quantised_model();
  auto const all = dense_bytes(model, Form::native);
  std::vector<int> const ring{0, 2, 1};
  auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(3)}, 3);
  auto const traffic = dense_traffic(model, Form::hf, shares, ring);
  auto const own = [&](std::size_t rank) { return plan_bytes(model, shares.by_rank[rank], Form::native); };
  EXPECT_EQ(traffic[0].sent, all - own(2));
  EXPECT_EQ(traffic[2].sent, all - own(1));
  EXPECT_EQ(traffic[1].sent, all - own(0));
  for (std::size_t rank = 0; rank < 3; ++rank) EXPECT_EQ(traffic[rank].received, all - own(rank));
}

TEST(DenseShares, ThePlanOfEachRankReadsAllAndPassesNothingOn) {
  auto const model = quantised_model();
  for (auto const dense : {DenseReading::automatic, DenseReading::each_rank}) {
    for (auto const& bytes : dense_traffic(model, Form::hf, make_mesh(4), dense)) {
      EXPECT_EQ(bytes.read, dense_bytes(model, Form::hf));
      EXPECT_EQ(bytes.sent + bytes.received, 0U);
    }
  }
}

TEST(DenseShares, ReadingThemOnceChangesWhatARankReadsAndNotWhatItHolds) {
  auto const model = quantised_model();
  auto const mesh = make_mesh(4, 2);
  std::uint64_t read = 0, each = 0;
  for (int rank = 0; rank < 4; ++rank) {
    auto const once = make_load_plan(model, Form::hf, mesh, rank, DenseReading::once);
    auto const alone = make_load_plan(model, Form::hf, mesh, rank, DenseReading::each_rank);
    EXPECT_EQ(once.bytes_owned, alone.bytes_owned);
    read += once.bytes_read;
    each += alone.bytes_read;
  }
  EXPECT_EQ(each - read, 3 * dense_bytes(model, Form::hf));
}

TEST(DenseShares, ThousandsOfRanksAreDealtToInOnePass) {
  auto const model = mixed_model();
  auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(1 << 20)}, 1 << 20);
  std::uint64_t bytes = 0;
  for (auto const& share : shares.by_rank) bytes += plan_bytes(model, share, Form::hf);
  EXPECT_EQ(bytes, dense_bytes(model, Form::hf));
}

}  // namespace
}  // namespace rankslice::test
