#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "hf_target.hpp"
#include "plan/plan.hpp"
#include "support/hand_model.hpp"
#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

Range rows_of(std::uint32_t parameter) { return {0, parameter == 0 ? 1U : 4U}; }

// What is read of which file for a part of a parameter.
struct Found {
  Range part;
  std::uint32_t file = 0;
  Range bytes;
  bool operator==(Found const&) const = default;
};

std::vector<Found> find(Storage const& storage, Model const& model, std::uint32_t parameter, Range part) {
  std::vector<Found> found;
  Slice const slice{.part = part, .rows = rows_of(parameter)};
  for (auto const& located : locate(storage, model, {.parameter = parameter, .slice = slice})) {
    EXPECT_EQ(located.slice.rows, slice.rows);
    for (auto const& bytes : read_ranges(model, storage.form, located)) {
      found.push_back({located.slice.part, located.piece->extent.file, bytes});
    }
  }
  return found;
}

StoredPiece piece(std::uint32_t parameter, Range part, std::uint32_t file, Range bytes) {
  return {.parameter = parameter,
          .tensor = parameter,
          .slice = {.part = part, .rows = rows_of(parameter)},
          .extent = {.file = file, .bytes = bytes}};
}

// A dense tensor of 10 elements (2 bytes in HF form, 4 when loaded) and 6 experts of 8 bytes, 4 rows of 1 element.
Model two_parameters() {
  Model model;
  test::append_dense(model, "dense", DType::BF16, DType::F32, {10});
  test::append_grouped(model, "experts", {6, 4, 1});
  return model;
}

Storage stored(Form form, std::vector<StoredPiece> pieces) {
  return {.form = form, .files = {}, .pieces = std::move(pieces)};
}

TEST(Locate, CutsAPartOutOfAWholeTensor) {
  auto const storage = stored(Form::hf, {piece(0, {0, 10}, 3, {100, 120}), piece(1, {0, 6}, 4, {200, 248})});
  EXPECT_EQ(find(storage, two_parameters(), 0, {0, 10}), (std::vector<Found>{{{0, 10}, 3, {100, 120}}}));
  EXPECT_EQ(find(storage, two_parameters(), 0, {4, 7}), (std::vector<Found>{{{4, 7}, 3, {108, 114}}}));
  EXPECT_EQ(find(storage, two_parameters(), 1, {5, 6}), (std::vector<Found>{{{5, 6}, 4, {240, 248}}}));
}

TEST(Locate, CountsInTheBytesOfTheStoredForm) {
  auto const storage = stored(Form::native, {piece(0, {0, 10}, 0, {100, 140})});
  EXPECT_EQ(find(storage, two_parameters(), 0, {4, 7}), (std::vector<Found>{{{4, 7}, 0, {116, 128}}}));
}

TEST(Locate, AnEmptyPartIsNowhere) {
  auto const storage = stored(Form::hf, {piece(1, {0, 6}, 0, {0, 48})});
  EXPECT_EQ(find(storage, two_parameters(), 1, {6, 6}), std::vector<Found>{});
  EXPECT_EQ(find(storage, two_parameters(), 0, {0, 0}), std::vector<Found>{});  // not stored at all
}

TEST(Locate, FollowsAPartThroughSeveralFiles) {
  auto const storage =
      stored(Form::hf, {piece(1, {0, 2}, 0, {10, 26}), piece(1, {2, 4}, 1, {10, 26}), piece(1, {4, 6}, 2, {50, 66})});
  EXPECT_EQ(find(storage, two_parameters(), 1, {1, 5}),
            (std::vector<Found>{{{1, 2}, 0, {18, 26}}, {{2, 4}, 1, {10, 26}}, {{4, 5}, 2, {50, 58}}}));
}

TEST(Locate, AdjacentBytesOfDifferentFilesAreApart) {
  auto const storage = stored(Form::hf, {piece(1, {0, 2}, 0, {0, 16}), piece(1, {2, 6}, 1, {16, 48})});
  EXPECT_EQ(find(storage, two_parameters(), 1, {0, 6}),
            (std::vector<Found>{{{0, 2}, 0, {0, 16}}, {{2, 6}, 1, {16, 48}}}));
}

TEST(Locate, TakesReplicatedPartsFromTheFirstPieceThatHasThem) {
  auto const storage =
      stored(Form::hf, {piece(0, {0, 10}, 0, {0, 20}), piece(0, {0, 10}, 1, {0, 20}), piece(1, {0, 3}, 0, {20, 44}),
                        piece(1, {0, 3}, 2, {20, 44}), piece(1, {2, 4}, 3, {60, 76}), piece(1, {3, 6}, 1, {20, 44})});
  EXPECT_EQ(find(storage, two_parameters(), 0, {2, 10}), (std::vector<Found>{{{2, 10}, 0, {4, 20}}}));
  EXPECT_EQ(find(storage, two_parameters(), 1, {0, 6}),
            (std::vector<Found>{{{0, 3}, 0, {20, 44}}, {{3, 4}, 3, {68, 76}}, {{4, 6}, 1, {28, 44}}}));
}

void expect_missing(Storage const& storage, std::uint32_t parameter, Range part, std::string const& message) {
  try {
    (void)find(storage, two_parameters(), parameter, part);
    ADD_FAILURE() << message;
  } catch (PlanError const& error) {
    EXPECT_EQ(error.what(), message);
    EXPECT_EQ(error.tensor, parameter == 0 ? "dense" : "experts");
  }
}

TEST(Locate, WhatNoPieceHoldsIsAnErrorThatNamesIt) {
  auto const storage = stored(Form::hf, {piece(1, {0, 2}, 0, {0, 16}), piece(1, {3, 5}, 1, {0, 16})});
  expect_missing(storage, 0, {0, 10}, "dense: elements [0, 10) are in none of the files");
  expect_missing(storage, 1, {1, 5}, "experts: experts [2, 3), rows [0, 4), are in none of the files");  // a hole
  expect_missing(storage, 1, {2, 3}, "experts: experts [2, 3), rows [0, 4), are in none of the files");
  expect_missing(storage, 1, {3, 6}, "experts: experts [5, 6), rows [0, 4), are in none of the files");  // past the end
}

TEST(Locate, TheRanksOfOneReplicaReadEveryExpertByteOfAModelExactlyOnce) {
  auto const catalog = test::make_catalog(test::tiny_qwen35());
  auto const model = test::make_model(test::tiny_qwen35());
  Storage const storage{.form = Form::hf, .files = catalog.files, .pieces = hf_pieces(catalog, model)};
  std::vector<Range> expected;
  for (auto const& tensor : catalog.tensors) {
    if (tensor.name.find(".mlp.experts.") != std::string::npos) expected.push_back(tensor.extent.bytes);
  }
  for (int ranks = 1; ranks <= 6; ++ranks) {
    auto const mesh = make_mesh(ranks);
    std::vector<Range> read;
    for (int rank = 0; rank < ranks; ++rank) {
      for (auto const& wanted : make_load_plan(model, Form::hf, mesh, mesh.coordinate(rank)).slices) {
        if (!model.parameters[wanted.parameter].stacked_experts) continue;
        for (auto const& located : locate(storage, model, wanted)) {
          auto const ranges = read_ranges(model, Form::hf, located);
          read.insert(read.end(), ranges.begin(), ranges.end());
        }
      }
    }
    std::ranges::sort(read);
    std::vector<Range> joined;
    for (auto const& bytes : read) {
      auto const tensor_begins = std::ranges::find(expected, bytes.begin, &Range::begin) != expected.end();
      if (tensor_begins) {
        joined.push_back(bytes);
      } else {
        ASSERT_EQ(bytes.begin, joined.back().end);
        joined.back().end = bytes.end;
      }
    }
    EXPECT_EQ(joined, expected) << ranks << " ranks";
  }
}

}  // namespace
}  // namespace rankslice
