// The scales of what somebody wants: which bytes are read, which are whose, and what is left of a read that failed.

#include "transform/piece_scales.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "rankslice/error.hpp"

#include "support/memory_reader.hpp"
#include "support/raw_checkpoint.hpp"

namespace rankslice {
namespace {

constexpr std::uint64_t kExperts = 3, kRows = 300, kColumns = 200;  // 3 by 2 blocks, those at the edges partial
constexpr std::uint64_t kScalesAt = 13;                             // in their file

/// One weight and its scales: experts that lie as in the native form or swapped, or a dense matrix.
struct Weight {
  Model model;
  StoredPiece piece;
  test::Bytes file;

  Weight(bool stacked, Layout layout) {
    Shape const shape = stacked ? Shape{kExperts, kRows, kColumns} : Shape{kRows, kColumns};
    Shape const scales = stacked ? Shape{kExperts, 3, 2} : Shape{3, 2};
    model.tensors.push_back({.key = "weight", .dtype = DType::F8_E4M3, .shape = shape, .scales = 1});
    model.tensors.push_back({.key = "scales", .dtype = DType::F32, .shape = scales, .is_scales = true});
    if (stacked) model.tensors[0].experts = {0, kExperts};
    auto& parameter = model.parameters.emplace_back();
    parameter.hf_dtype = DType::F8_E4M3;
    parameter.shape = shape;
    if (layout == Layout::swapped) std::swap(parameter.shape[1], parameter.shape[2]);
    parameter.layout = layout;
    parameter.stacked_experts = stacked;
    parameter.tensors = {0};
    auto const bytes = (stacked ? kExperts : 1) * 3 * 2 * 4;
    piece.slice = parameter.whole();
    piece.scales = Extent{.file = 0, .bytes = {kScalesAt, kScalesAt + bytes}};
    file = test::random_bytes(kScalesAt + bytes + 5, 1);
  }

  /// The first element of the block of each scale: is it in a slice?
  [[nodiscard]] bool has_first_element(Slice const& slice, std::uint64_t scale) const {
    auto const has = [](Range range, std::uint64_t at) { return range.begin <= at && at < range.end; };
    auto const expert = scale / 6, row = scale % 6 / 2 * 128, column = scale % 2 * 128;
    auto const& parameter = model.parameters[0];
    if (!parameter.stacked_experts) return has(slice.part, row * kColumns + column);
    return has(slice.part, expert) && has(slice.rows, parameter.layout == Layout::swapped ? column : row);
  }
};

/// Cuts on the edges of blocks, beside them and anywhere.
std::vector<Slice> slices_of(Weight const& weight) {
  auto const whole = weight.piece.slice;
  std::vector<Slice> slices{whole};
  if (weight.model.parameters[0].stacked_experts) {
    for (Range const part : {Range{0, 3}, Range{1, 2}, Range{2, 3}}) {
      for (auto const row : {1, 100, 127, 128, 129, 199}) {
        auto const cut = static_cast<std::uint64_t>(row);
        slices.push_back({part, {0, cut}});
        slices.push_back({part, {cut, whole.rows.end}});
        if (cut > 60) slices.push_back({part, {60, cut}});
      }
    }
    return slices;
  }
  for (std::uint64_t const cut : {1UL, 128UL, 129UL, 200UL, 127UL * 200, 128UL * 200, 128UL * 200 + 128, 59'999UL}) {
    slices.push_back({{0, cut}, {0, 1}});
    slices.push_back({{cut, whole.part.end}, {0, 1}});
    if (cut > 130) slices.push_back({{130, cut}, {0, 1}});
  }
  return slices;
}

// Rule 59: shards need not align to blocks, and each scale is counted once.
TEST(PieceScales, Rule59_AreDigestedByWhoeverHasTheFirstElementOfTheirBlock) {
  for (auto const& weight : {Weight(false, Layout::same), Weight(true, Layout::same), Weight(true, Layout::swapped)}) {
    for (auto const& slice : slices_of(weight)) {
      test::MemoryReader file(weight.file);
      PieceScales scales;
      auto const experts = weight.model.parameters[0].stacked_experts ? slice.part.size() : 1;
      EXPECT_EQ(scales.read(weight.model, weight.piece, slice, file), 4 * 6 * experts);
      std::map<std::uint64_t, test::Bytes> found;
      scales.for_each_digested([&](std::uint64_t first, std::span<std::byte const> bytes) {
        ASSERT_FALSE(bytes.empty());
        for (std::size_t i = 0; i < bytes.size() / 4; ++i) {
          auto const one = bytes.subspan(4 * i, 4);
          EXPECT_TRUE(found.try_emplace(first + i, one.begin(), one.end()).second);
        }
      });
      for (std::uint64_t scale = 0; scale < weight.piece.scales->bytes.size() / 4; ++scale) {
        auto const expected = weight.has_first_element(slice, scale);
        ASSERT_EQ(found.contains(scale), expected) << to_string(slice) << " scale " << scale;
        if (!expected) continue;
        EXPECT_TRUE(std::ranges::equal(found[scale], std::span(weight.file).subspan(kScalesAt + 4 * scale, 4)));
      }
    }
  }
}

TEST(PieceScales, AreReadOnceForASlice) {
  Weight const weight(true, Layout::swapped);
  test::MemoryReader file(weight.file);
  PieceScales scales;
  Slice const first{{0, 1}, weight.piece.slice.rows};
  EXPECT_EQ(scales.read(weight.model, weight.piece, first, file), 24U);
  EXPECT_EQ(scales.read(weight.model, weight.piece, first, file), 0U);
}

TEST(PieceScales, AfterAReadThatFailedNothingIsTakenForRead) {
  Weight const weight(true, Layout::swapped);
  Slice const first{{0, 1}, weight.piece.slice.rows}, second{{1, 2}, weight.piece.slice.rows};
  test::MemoryReader file(weight.file);
  PieceScales scales;
  EXPECT_EQ(scales.read(weight.model, weight.piece, first, file), 24U);
  test::MemoryReader damaged(weight.file);
  damaged.fail_at(kScalesAt + 30);
  EXPECT_THROW(scales.read(weight.model, weight.piece, second, damaged), IoError);
  EXPECT_EQ(scales.read(weight.model, weight.piece, first, file), 24U);
  EXPECT_TRUE(std::ranges::equal(std::span(scales.of(0).data, 24), std::span(weight.file).subspan(kScalesAt, 24)));
}

}  // namespace
}  // namespace rankslice
