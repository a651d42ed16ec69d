#include "plan/thread_shares.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace rankslice {
namespace {

constexpr std::uint64_t kPage = 4096;

/// A model and one storage of it: each tensor is one piece, one after the other in one file.
struct Example {
  Model model;
  Storage storage;
  std::uint64_t end = 0;  // of the file

  /// Experts of [rows, columns] in the native form, columns of them in the file where they are swapped.
  void add_experts(std::uint64_t experts, std::uint64_t rows, std::uint64_t columns, Layout layout) {
    auto const index = static_cast<std::uint32_t>(model.parameters.size());
    auto const swapped = layout == Layout::swapped;
    Shape const hf{experts, swapped ? columns : rows, swapped ? rows : columns};
    auto const key = std::to_string(index);
    model.tensors.push_back({.key = key,
                             .dtype = DType::BF16,
                             .shape = hf,
                             .parameter = index,
                             .experts = {0, experts},
                             .columns = {0, columns}});
    model.parameters.push_back(
        {.fqn = key, .shape = {experts, rows, columns}, .layout = layout, .stacked_experts = true, .tensors = {index}});
    add_piece(index);
  }
  void add_dense(std::uint64_t elements, DType dtype) {
    auto const index = static_cast<std::uint32_t>(model.parameters.size());
    auto const key = std::to_string(index);
    model.tensors.push_back({.key = key, .dtype = dtype, .shape = {elements}, .parameter = index});
    model.parameters.push_back(
        {.fqn = key, .hf_dtype = dtype, .dtype = dtype, .shape = {elements}, .tensors = {index}});
    add_piece(index);
  }
  void add_piece(std::uint32_t index) {
    auto const& parameter = model.parameters[index];
    auto const bytes = parameter.bytes(parameter.whole(), storage.form);
    storage.pieces.push_back(
        {.parameter = index, .tensor = index, .slice = parameter.whole(), .extent = {0, {end, end + bytes}}});
    end += bytes;
  }
  /// All of the last tensor's scales are read with any part of it.
  void add_scales_of_last() { storage.pieces.back().scales = Extent{0, {end, end + 16}}; }

  [[nodiscard]] std::vector<PlannedPiece> pieces() const {
    std::vector<PlannedSlice> plan;
    for (std::uint32_t i = 0; i < model.parameters.size(); ++i) plan.push_back({i, model.parameters[i].whole()});
    return in_file_order(storage, model, plan);
  }
  [[nodiscard]] std::uint64_t bytes(PlannedPiece const& piece) const {
    return model.parameters[piece.located.piece->parameter].bytes(piece.located.slice, Form::hf);
  }
  [[nodiscard]] std::uint64_t bytes(std::vector<PlannedPiece> const& pieces) const {
    std::uint64_t sum = 0;
    for (auto const& piece : pieces) sum += bytes(piece);
    return sum;
  }
};

Example random_example(std::mt19937& random) {
  Example example;
  auto const below = [&](std::uint64_t most) { return random() % most; };
  for (auto tensors = 1 + below(12); tensors > 0; --tensors) {
    switch (below(4)) {
      case 0:
        example.add_experts(1 + below(40), 1 + below(200), 1 + below(200), Layout::swapped);
        break;
      case 1:
        example.add_experts(1 + below(40), 1 + below(200), 1 + below(200), Layout::same);
        break;
      case 2:
        example.add_dense(1 + below(400'000), below(2) == 0 ? DType::F32 : DType::U8);
        break;
      default:
        example.add_dense(1 + below(400'000), DType::BF16);
        example.add_scales_of_last();
    }
  }
  return example;
}

/// What cannot be divided of a piece.
std::uint64_t unit_bytes(Example const& example, PlannedPiece const& piece) {
  auto const& parameter = example.model.parameters[piece.located.piece->parameter];
  if (parameter.stacked_experts) return parameter.row_count() * parameter.row_bytes(Form::hf);
  if (piece.located.piece->scales) return example.bytes(piece);
  return kPage * parameter.unit_bytes(Form::hf);
}

using Shares = std::vector<std::vector<PlannedPiece>>;

/// The pieces of all shares, one after the other, those of one piece put together.
std::vector<PlannedPiece> joined(Shares const& shares) {
  std::vector<PlannedPiece> pieces;
  for (auto const& share : shares) {
    for (auto const& piece : share) {
      auto const& next = piece.located;
      auto const goes_on = !pieces.empty() && pieces.back().located.piece == next.piece &&
                           pieces.back().located.slice.part.end == next.slice.part.begin;
      if (goes_on) {
        pieces.back().located.slice.part.end = next.slice.part.end;
      } else {
        pieces.push_back(piece);
      }
    }
  }
  return pieces;
}

class ThreadShares : public testing::TestWithParam<std::size_t> {
 protected:
  template <typename Check>
  void for_each_example(Check const& check) const {
    std::mt19937 random(11);
    for (int round = 0; round < 50; ++round) {
      auto const example = random_example(random);
      check(example, divide_among_threads(example.storage, example.model, example.pieces(), GetParam()));
    }
  }
};

TEST_P(ThreadShares, TogetherAreAllPiecesInTheirOrder) {
  for_each_example([](Example const& example, Shares const& shares) {
    auto const all = example.pieces();
    auto const found = joined(shares);
    ASSERT_EQ(found.size(), all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(found[i].item, all[i].item);
      EXPECT_EQ(found[i].located.piece, all[i].located.piece);
      EXPECT_EQ(found[i].located.slice, all[i].located.slice);
    }
  });
}

TEST_P(ThreadShares, AreNoMoreThanThreadsAndNoneIsEmpty) {
  for_each_example([](Example const&, Shares const& shares) {
    EXPECT_LE(shares.size(), GetParam());
    for (auto const& share : shares) EXPECT_FALSE(share.empty());
  });
}

TEST_P(ThreadShares, AreAsLargeAsEachOtherButForAUnitAtTheirBounds) {
  for_each_example([](Example const& example, Shares const& shares) {
    std::uint64_t largest_unit = 0;
    for (auto const& piece : example.pieces()) largest_unit = std::max(largest_unit, unit_bytes(example, piece));
    for (auto const& share : shares) {
      EXPECT_LE(example.bytes(share), example.end / GetParam() + 1 + largest_unit);
    }
  });
}

TEST_P(ThreadShares, BeginAtWholePagesOfDenseTensorsThatTheyCut) {
  for_each_example([](Example const& example, Shares const& shares) {
    for (auto const& share : shares) {
      auto const& first = share.front().located;
      if (example.model.parameters[first.piece->parameter].stacked_experts) continue;
      EXPECT_EQ(first.slice.part.begin % kPage, 0U);
      EXPECT_TRUE(!first.piece->scales || first.slice == first.piece->slice) << "scales are read once";
    }
  });
}

INSTANTIATE_TEST_SUITE_P(OfThreads, ThreadShares, testing::Values(1, 2, 3, 7, 16, 64));

TEST(ThreadSharesOfPartsOfTensors, AreCutAtPagesOfTheWholeTensor) {
  Example example;
  example.add_dense(10 * kPage, DType::U8);
  auto const pieces = in_file_order(example.storage, example.model, {{0, {.part = {100, 5 * kPage + 7}}}});
  auto const shares = divide_among_threads(example.storage, example.model, pieces, 2);
  ASSERT_EQ(shares.size(), 2U);
  EXPECT_EQ(shares[0].front().located.slice.part, (Range{100, 3 * kPage}));
  EXPECT_EQ(shares[1].front().located.slice.part, (Range{3 * kPage, 5 * kPage + 7}));
}

// 10 of 40 rows of an expert are columns of the file, of which the rows are read whole (`Parameter::read_for`).
TEST(ThreadSharesOfPartsOfTensors, CountWhatIsReadForThem) {
  Example example;
  example.add_experts(4, 40, 100, Layout::swapped);
  example.add_dense(32'000, DType::U8);  // as many bytes as four whole experts
  auto const pieces = in_file_order(example.storage, example.model,
                                    {{0, {.part = {0, 4}, .rows = {0, 10}}}, {1, {.part = {0, 32'000}}}});
  auto const shares = divide_among_threads(example.storage, example.model, pieces, 2);
  ASSERT_EQ(shares.size(), 2U);
  ASSERT_EQ(shares[0].size(), 1U);
  EXPECT_EQ(shares[0].front().located.slice, (Slice{.part = {0, 4}, .rows = {0, 10}}));
  EXPECT_EQ(shares[1].front().located.piece->parameter, 1U);
}

TEST(ThreadSharesOfNothing, AreOneEmptyOne) {
  Example const example;
  EXPECT_EQ(divide_among_threads(example.storage, example.model, {}, 4).size(), 1U);
}

}  // namespace
}  // namespace rankslice
