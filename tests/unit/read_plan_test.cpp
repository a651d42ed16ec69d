// In which order the pieces of a plan are read, and which of their bytes lie together.

#include "plan/read_plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "rankslice/error.hpp"

#include "hf_target.hpp"
#include "io/block_plan.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

/// What is read for a plan, by file.
std::vector<std::vector<Range>> merged_runs(Storage const& storage, Model const& model,
                                            std::vector<PlannedPiece> const& pieces) {
  return runs_by_file(extents_read(storage, model, pieces), storage.files.size());
}

constexpr std::uint64_t kExperts = 5, kHidden = 8, kIntermediate = 4;
constexpr std::uint64_t kMatrix = kHidden * kIntermediate * 2;  // bytes of a BF16 down, gate or up matrix

/// Split experts in one file, after a dense tensor of 10 bytes: down, gate and up of expert 0, then those of 1, ….
class SplitExperts : public testing::Test {
 protected:
  SplitExperts() {
    test::append_dense(model_, "norm", DType::BF16, DType::BF16, {5});
    test::append_split(model_, "experts", kExperts, kHidden, kIntermediate);
    auto const catalog = test::catalog_of(model_, kFirst);
    storage_ = {.form = Form::hf, .files = catalog.files, .pieces = hf_pieces(catalog, model_)};
  }
  [[nodiscard]] std::vector<PlannedSlice> plan(Mesh const& mesh, int rank) const {
    return make_load_plan(model_, Form::hf, mesh, mesh.coordinate(rank)).slices;
  }
  [[nodiscard]] std::vector<Range> runs(std::vector<PlannedSlice> const& plan) const {
    return merged_runs(storage_, model_, in_file_order(storage_, model_, plan)).front();
  }
  [[nodiscard]] static std::uint64_t expert_at(std::uint64_t expert) { return kDenseEnd + expert * 3 * kMatrix; }

  static constexpr std::uint64_t kFirst = 7, kDenseEnd = kFirst + 10;
  Model model_;
  Storage storage_;
};

TEST_F(SplitExperts, AreReadAsTheyLieExpertByExpert) {
  auto const plan = this->plan({1, 1, 1}, 0);
  auto const pieces = in_file_order(storage_, model_, plan);
  std::vector<std::string> keys;
  for (auto const& [item, located] : pieces) {
    keys.push_back(model_.tensors[located.piece->tensor].key);
    EXPECT_EQ(plan[item].parameter, located.piece->parameter) << keys.back();
  }
  ASSERT_EQ(keys.size(), 1 + 3 * kExperts);
  EXPECT_THAT(std::vector(keys.begin(), keys.begin() + 5),
              ElementsAre("norm", "experts.0.down_proj.weight", "experts.0.gate_proj.weight",
                          "experts.0.up_proj.weight", "experts.1.down_proj.weight"));
}

TEST_F(SplitExperts, OfOneRankLieTogether) {
  // 2, 2 and 1 of 5
  EXPECT_THAT(runs(plan({1, 1, 3}, 0)), ElementsAre(Range{kFirst, expert_at(2)}));
  EXPECT_THAT(runs(plan({1, 1, 3}, 1)), ElementsAre(Range{kFirst, kDenseEnd}, Range{expert_at(2), expert_at(4)}));
  EXPECT_THAT(runs(plan({1, 1, 3}, 2)), ElementsAre(Range{kFirst, kDenseEnd}, Range{expert_at(4), expert_at(5)}));
}

TEST_F(SplitExperts, OfARankWithoutAnyAreNotRead) {
  EXPECT_THAT(runs(plan({1, 1, 6}, 5)), ElementsAre(Range{kFirst, kDenseEnd}));
}

TEST_F(SplitExperts, OfAFileThatHasNothingOfThePlanAreNoRuns) {
  storage_.files.push_back({.name = "other", .path = "other", .size = 1000});
  auto const runs = merged_runs(storage_, model_, in_file_order(storage_, model_, plan({1, 1, 1}, 0)));
  ASSERT_EQ(runs.size(), 2U);
  EXPECT_THAT(runs.back(), IsEmpty());
}

TEST_F(SplitExperts, OfWhichOneIsMissingAreAnError) {
  std::erase_if(storage_.pieces, [&](StoredPiece const& piece) {
    return model_.tensors[piece.tensor].key == "experts.3.down_proj.weight";
  });
  EXPECT_THROW((void)in_file_order(storage_, model_, plan({1, 1, 1}, 0)), PlanError);
  EXPECT_NO_THROW((void)in_file_order(storage_, model_, plan({1, 1, 5}, 0)));
}

TEST_F(SplitExperts, ComeFileByFileWhateverTheOrderOfTheirParameters) {
  storage_.files.push_back(storage_.files.front());
  for (auto& piece : storage_.pieces) {
    if (piece.slice.part.begin % 2 == 0) piece.extent.file = 1;
  }
  auto const pieces = in_file_order(storage_, model_, plan({1, 1, 1}, 0));
  auto const place = [](PlannedPiece const& piece) {
    return std::tuple(piece.located.piece->extent.file, piece.located.piece->extent.bytes.begin);
  };
  EXPECT_TRUE(std::ranges::is_sorted(pieces, {}, place));
  EXPECT_EQ(pieces.size(), 1 + 3 * kExperts);
}

// The scales stand behind their weights, and the next weight behind them; those of expert 4 are in another file.
TEST_F(SplitExperts, LieTogetherWithTheScalesBetweenThem) {
  constexpr std::uint64_t kScales = 4;
  storage_.files.push_back({.name = "other", .path = "other", .size = 1000});
  for (auto& piece : storage_.pieces) {
    if (!model_.parameters[piece.parameter].stacked_experts) continue;
    auto const before = (piece.extent.bytes.begin - kDenseEnd) / kMatrix * kScales;
    piece.extent.bytes = {piece.extent.bytes.begin + before, piece.extent.bytes.end + before};
    piece.scales = Extent{0, {piece.extent.bytes.end, piece.extent.bytes.end + kScales}};
    if (piece.slice.part.begin == 4) piece.scales->file = 1;
  }
  auto const at = [](std::uint64_t expert) { return kDenseEnd + expert * 3 * (kMatrix + kScales); };
  EXPECT_THAT(runs(plan({1, 1, 3}, 1)), ElementsAre(Range{kFirst, kDenseEnd}, Range{at(2), at(4)}));
  auto const last = merged_runs(storage_, model_, in_file_order(storage_, model_, plan({1, 1, 3}, 2)));
  auto const matrix = [&](std::uint64_t i) {
    auto const begin = at(4) + i * (kMatrix + kScales);
    return Range{begin, begin + kMatrix};
  };
  auto const scales = [&](std::uint64_t i) { return Range{matrix(i).end, matrix(i).end + kScales}; };
  EXPECT_THAT(last[0], ElementsAre(Range{kFirst, kDenseEnd}, matrix(0), matrix(1), matrix(2)));
  EXPECT_THAT(last[1], ElementsAre(scales(0), scales(1), scales(2)));
}

// As safetensors writes it: the wider elements first, so all scales before all weights, and BF16 tensors among them.
TEST_F(SplitExperts, AreReadInTheOrderOfTheirScalesWhereTheseComeFirst) {
  for (auto& piece : storage_.pieces) {
    if (!model_.parameters[piece.parameter].stacked_experts) {
      piece.extent.bytes = {14, 24};
      continue;
    }
    auto const nth = (piece.extent.bytes.begin - kDenseEnd) / kMatrix;
    auto const scales = nth * 4 + (nth < 3 ? 0 : 12);  // the dense tensor lies behind those of expert 0
    piece.scales = Extent{0, {scales, scales + 4}};
    piece.extent.bytes = {1000 + nth * kMatrix, 1000 + (nth + 1) * kMatrix};
  }
  std::vector<std::string> keys;
  for (auto const& [item, located] : in_file_order(storage_, model_, plan({1, 1, 1}, 0))) {
    keys.push_back(model_.tensors[located.piece->tensor].key);
  }
  EXPECT_THAT(std::vector(keys.begin(), keys.begin() + 6),
              ElementsAre("experts.0.down_proj.weight", "experts.0.gate_proj.weight", "experts.0.up_proj.weight",
                          "norm", "experts.1.down_proj.weight", "experts.1.gate_proj.weight"));
}

TEST(MergedRuns, OfEveryRankAddUpToItsPlanWithGapsBetweenThem) {
  for (auto const hidden : {24U, 131'072U}) {
    auto const model = test::split_model(5, hidden, 4);
    auto const catalog = test::catalog_of(model);
    Storage const storage{.form = Form::hf, .files = catalog.files, .pieces = hf_pieces(catalog, model)};
    for (Mesh const mesh : {Mesh{1, 1, 3}, Mesh{1, 2, 2}, Mesh{2, 4, 7}}) {
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        auto const plan = make_load_plan(model, Form::hf, mesh, mesh.coordinate(rank));
        auto const runs = merged_runs(storage, model, in_file_order(storage, model, plan.slices)).front();
        std::uint64_t bytes = 0, end = 0;
        for (auto const& run : runs) {
          EXPECT_TRUE(run.begin > end || &run == &runs.front()) << run.begin;
          end = run.end;
          bytes += run.size();
        }
        EXPECT_EQ(bytes, plan.bytes_read) << "rank " << rank << " of " << mesh.ep_shard << " x " << mesh.ep;
      }
    }
  }
}

}  // namespace
}  // namespace rankslice
