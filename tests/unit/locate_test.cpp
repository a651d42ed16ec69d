#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "plan/plan.hpp"
#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

struct Found {
  Range part;
  std::uint32_t file = 0;
  Range bytes;
  bool operator==(Found const&) const = default;
};

std::vector<Found> find(Storage const& storage, std::vector<Parameter> const& parameters, std::uint32_t parameter,
                        Range part) {
  std::vector<Found> found;
  for (auto const& located : locate(storage, parameters, {.parameter = parameter, .part = part})) {
    found.push_back({located.part, located.extent.file, located.extent.bytes});
  }
  return found;
}

StoredPiece piece(std::uint32_t parameter, Range part, std::uint32_t file, Range bytes) {
  return {.parameter = parameter, .part = part, .extent = {.file = file, .bytes = bytes}};
}

// A dense tensor of 10 elements (2 bytes in HF form, 4 when loaded) and 6 experts of 8 bytes.
std::vector<Parameter> two_parameters() {
  return {{.hf_key = "dense",
           .fqn = "native.dense",
           .hf_dtype = DType::BF16,
           .dtype = DType::F32,
           .hf_shape = {10},
           .shape = {10}},
          {.hf_key = "experts",
           .fqn = "native.experts",
           .hf_dtype = DType::BF16,
           .dtype = DType::BF16,
           .hf_shape = {6, 4, 1},
           .shape = {6, 1, 4},
           .layout = Layout::swapped,
           .stacked_experts = true}};
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

TEST(Locate, MergesPiecesThatAreNeighboursInPartsAndBytes) {
  auto const storage =
      stored(Form::hf, {piece(1, {0, 2}, 0, {10, 26}), piece(1, {2, 4}, 0, {26, 42}), piece(1, {4, 6}, 0, {43, 59})});
  EXPECT_EQ(find(storage, two_parameters(), 1, {1, 5}),
            (std::vector<Found>{{{1, 4}, 0, {18, 42}}, {{4, 5}, 0, {43, 51}}}));
}

TEST(Locate, AdjacentBytesOfDifferentFilesStayApart) {
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
    (void)locate(storage, two_parameters(), {.parameter = parameter, .part = part});
    ADD_FAILURE() << message;
  } catch (PlanError const& error) {
    EXPECT_EQ(error.what(), message);
    EXPECT_EQ(error.tensor, two_parameters()[parameter].hf_key);
  }
}

TEST(Locate, WhatNoPieceHoldsIsAnErrorThatNamesIt) {
  auto const storage = stored(Form::hf, {piece(1, {0, 2}, 0, {0, 16}), piece(1, {3, 5}, 1, {0, 16})});
  expect_missing(storage, 0, {0, 10}, "dense: elements [0, 10) are in none of the files");
  expect_missing(storage, 1, {1, 5}, "experts: experts [2, 5) are in none of the files");  // a hole
  expect_missing(storage, 1, {2, 3}, "experts: experts [2, 3) are in none of the files");
  expect_missing(storage, 1, {3, 6}, "experts: experts [5, 6) are in none of the files");  // past the end
}

Storage storage_of(TensorCatalog const& catalog, std::vector<Parameter> const& parameters) {
  Storage storage{.form = Form::hf, .files = catalog.files, .pieces = {}};
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    storage.pieces.push_back(
        piece(i, {0, parameters[i].part_count()}, catalog.tensors[i].extent.file, catalog.tensors[i].extent.bytes));
  }
  return storage;
}

TEST(Locate, TheRanksOfOneReplicaReadEveryExpertByteOfAModelExactlyOnce) {
  auto const catalog = test::make_catalog(test::tiny_qwen35());
  auto const parameters = test::make_parameters(test::tiny_qwen35());
  auto const storage = storage_of(catalog, parameters);
  std::vector<Range> expected;
  for (auto const& tensor : catalog.tensors) {
    if (tensor.name.find(".mlp.experts.") != std::string::npos) expected.push_back(tensor.extent.bytes);
  }
  for (int ranks = 1; ranks <= 6; ++ranks) {
    auto const mesh = make_mesh(ranks);
    std::vector<Range> read;
    for (int rank = 0; rank < ranks; ++rank) {
      for (auto const& wanted : make_load_plan(parameters, Form::hf, mesh, mesh.coordinate(rank)).parts) {
        if (!parameters[wanted.parameter].stacked_experts) continue;
        for (auto const& located : locate(storage, parameters, wanted)) read.push_back(located.extent.bytes);
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
