// Slices in the pieces that the ranks of a mesh with `ep_shard` wrote: a grid of experts and rows, with copies.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "plan/held.hpp"
#include "plan/plan.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

constexpr std::uint64_t kExperts = 7, kRows = 12, kColumns = 3;
constexpr std::uint64_t kFirstByte = 5;  // of each file

Model one_parameter() {
  Model model;
  test::append_grouped(model, "experts", {kExperts, kRows, kColumns});
  return model;
}

/// The number of an element of the global tensor is its value.
std::uint16_t element(std::uint64_t expert, std::uint64_t row, std::uint64_t column) {
  return static_cast<std::uint16_t>((expert * kRows + row) * kColumns + column);
}

/// The elements of a slice, row-major.
std::vector<std::uint16_t> elements_of(Slice const& slice) {
  std::vector<std::uint16_t> elements;
  for (auto e = slice.part.begin; e < slice.part.end; ++e) {
    for (auto row = slice.rows.begin; row < slice.rows.end; ++row) {
      for (std::uint64_t column = 0; column < kColumns; ++column) elements.push_back(element(e, row, column));
    }
  }
  return elements;
}

/// What the ranks of a mesh hold, each in a file of its own.
struct Shards {
  Storage storage{.form = Form::native, .files = {}, .pieces = {}};
  std::vector<std::vector<std::byte>> files;

  Shards(Model const& model, Mesh const& mesh) {
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      auto const slice = held_slice(model.parameters.front(), mesh, mesh.coordinate(rank));
      auto const elements = elements_of(slice);
      auto& file = files.emplace_back(kFirstByte + 2 * elements.size());
      if (!elements.empty()) std::memcpy(file.data() + kFirstByte, elements.data(), 2 * elements.size());
      storage.pieces.push_back(
          {.slice = slice, .extent = {.file = static_cast<std::uint32_t>(rank), .bytes = {kFirstByte, file.size()}}});
    }
    std::ranges::sort(storage.pieces, {}, [](StoredPiece const& piece) {
      return std::tuple(piece.slice.part.begin, piece.slice.rows.begin, piece.extent.file);
    });
  }

  /// Lose the file of a rank.
  void remove(std::uint32_t rank) {
    std::erase_if(storage.pieces, [rank](StoredPiece const& piece) { return piece.extent.file == rank; });
  }
};

/// The elements that the ranges of a located slice lead to.
std::vector<std::uint16_t> read(Model const& model, Shards const& shards, LocatedSlice const& located) {
  std::vector<std::uint16_t> elements;
  for (auto const& range : read_ranges(model, Form::native, located)) {
    auto const count = elements.size();
    elements.resize(count + range.size() / 2);
    std::memcpy(elements.data() + count, shards.files[located.piece->extent.file].data() + range.begin, range.size());
  }
  return elements;
}

/// Every element of `wanted` is found, once, and is where it is said to be.
void expect_found(Model const& model, Shards const& shards, Slice const& wanted) {
  std::vector<std::uint16_t> found;
  for (auto const& located : locate(shards.storage, model, {.parameter = 0, .slice = wanted})) {
    EXPECT_FALSE(located.slice.empty());
    auto const elements = read(model, shards, located);
    EXPECT_EQ(elements, elements_of(located.slice)) << to_string(located.slice);
    found.insert(found.end(), elements.begin(), elements.end());
  }
  std::ranges::sort(found);
  EXPECT_EQ(found, elements_of(wanted)) << to_string(wanted);
}

std::vector<Mesh> meshes() {
  std::vector<Mesh> all;
  for (int replicas = 1; replicas <= 2; ++replicas) {
    for (auto const shards : {1, 2, 3, 4}) {
      for (auto const ep : {1, 2, 3, 5, 9}) all.push_back({.ep_replicate = replicas, .ep_shard = shards, .ep = ep});
    }
  }
  return all;
}

TEST(LocateGrid, EveryRankOfAnyMeshFindsItsSliceInTheShardsOfAnyOther) {
  auto const model = one_parameter();
  for (auto const& written : meshes()) {
    Shards const shards(model, written);
    for (auto const& reading : meshes()) {
      SCOPED_TRACE(testing::Message() << "written by " << written.ep_replicate << " x " << written.ep_shard << " x "
                                      << written.ep << ", read by " << reading.ep_shard << " x " << reading.ep);
      for (int rank = 0; rank < reading.ranks(); ++rank) {
        expect_found(model, shards, held_slice(model.parameters.front(), reading, reading.coordinate(rank)));
      }
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(LocateGrid, PartsOfOneExpertAreFound) {
  auto const model = one_parameter();
  Shards const shards(model, {.ep_replicate = 2, .ep_shard = 3, .ep = 2});
  for (std::uint64_t begin = 0; begin < kRows; ++begin) {
    for (auto end = begin + 1; end <= kRows; ++end) expect_found(model, shards, {.part = {3, 5}, .rows = {begin, end}});
  }
}

TEST(LocateGrid, OfCopiesTheFirstIsTakenAndAnotherStandsInForOneThatIsMissing) {
  auto const model = one_parameter();
  Mesh const mesh{.ep_replicate = 2, .ep_shard = 2, .ep = 2};
  auto const files_of = [&](Shards const& shards) {
    std::vector<std::uint32_t> files;
    auto const whole = model.parameters.front().whole();
    for (auto const& located : locate(shards.storage, model, {.parameter = 0, .slice = whole})) {
      files.push_back(located.piece->extent.file);
    }
    std::ranges::sort(files);
    return files;
  };
  Shards shards(model, mesh);
  EXPECT_EQ(files_of(shards), (std::vector<std::uint32_t>{0, 1, 2, 3}));
  shards.remove(2);
  EXPECT_EQ(files_of(shards), (std::vector<std::uint32_t>{0, 1, 3, 6}));
}

// Shards of two folders, say: not copies of each other, and neither of them whole.
TEST(LocateGrid, PiecesOfDifferentGridsCompleteEachOther) {
  auto const model = one_parameter();
  Shards shards(model, {.ep_replicate = 1, .ep_shard = 3, .ep = 2});
  Shards const others(model, {.ep_replicate = 1, .ep_shard = 2, .ep = 5});
  shards.remove(4);  // rows [8, 12) of the experts [0, 4)
  for (auto piece : others.storage.pieces) {
    piece.extent.file += 6;
    shards.storage.pieces.push_back(piece);
  }
  shards.files.insert(shards.files.end(), others.files.begin(), others.files.end());
  std::ranges::sort(shards.storage.pieces, {}, [](StoredPiece const& piece) {
    return std::tuple(piece.slice.part.begin, piece.slice.rows.begin, piece.extent.file);
  });
  expect_found(model, shards, model.parameters.front().whole());
}

void expect_missing(Model const& model, Shards const& shards, Slice const& wanted, std::string const& message) {
  try {
    (void)locate(shards.storage, model, {.parameter = 0, .slice = wanted});
    ADD_FAILURE() << message;
  } catch (PlanError const& error) {
    EXPECT_EQ(error.what(), message);
    EXPECT_EQ(error.tensor, "experts");
  }
}

TEST(LocateGrid, AHoleIsAnErrorThatNamesExpertsAndRows) {
  auto const model = one_parameter();
  Shards shards(model, {.ep_replicate = 1, .ep_shard = 3, .ep = 2});
  shards.remove(2);  // rows [4, 8) of the experts [0, 4)
  auto const whole = model.parameters.front().whole();
  expect_missing(model, shards, whole, "experts: experts [0, 4), rows [4, 8), are in none of the files");
  expect_missing(model, shards, {.part = {3, 5}, .rows = {6, 12}},
                 "experts: experts [3, 4), rows [6, 8), are in none of the files");
  expect_found(model, shards, {.part = {0, 7}, .rows = {0, 4}});
  expect_found(model, shards, {.part = {4, 7}, .rows = {0, 12}});
}

// ---- split experts in the HF form: several tensors beside each other fill a slice ----

TEST(LocateSplit, ASliceIsInTheGateAndTheUpTensorOfEachOfItsExperts) {
  auto const model = test::split_model(4, 6, 2);
  auto const catalog = test::catalog_of(model);
  Storage storage{.form = Form::hf, .files = catalog.files, .pieces = {}};
  std::uint32_t const gate_up = 4;
  ASSERT_EQ(model.parameters[gate_up].fqn, "mtp.layers.0.mlp.experts.gate_and_up_projs");
  for (auto const tensor : model.parameters[gate_up].tensors) {
    storage.pieces.push_back({.parameter = gate_up,
                              .tensor = tensor,
                              .slice = {.part = model.tensors[tensor].experts, .rows = {0, 6}},
                              .extent = catalog.tensors[tensor].extent});
  }
  std::vector<std::string> found;
  for (auto const& located :
       locate(storage, model, {.parameter = gate_up, .slice = {.part = {1, 3}, .rows = {3, 6}}})) {
    auto const& tensor = model.tensors[located.piece->tensor];
    EXPECT_EQ(located.slice, (Slice{.part = tensor.experts, .rows = {3, 6}}));
    found.push_back(tensor.key);
  }
  EXPECT_EQ(found, (std::vector<std::string>{
                       "mtp.layers.0.mlp.experts.1.gate_proj.weight", "mtp.layers.0.mlp.experts.1.up_proj.weight",
                       "mtp.layers.0.mlp.experts.2.gate_proj.weight", "mtp.layers.0.mlp.experts.2.up_proj.weight"}));

  std::erase_if(storage.pieces, [&](auto const& piece) { return piece.slice.part == Range{2, 3}; });
  try {
    (void)locate(storage, model, {.parameter = gate_up, .slice = {.part = {1, 4}, .rows = {0, 6}}});
    ADD_FAILURE() << "expert 2 is in no file";
  } catch (PlanError const& error) {
    EXPECT_NE(std::string(error.what()).find("experts [2, 3), rows [0, 6), are in none"), std::string::npos);
  }
}

}  // namespace
}  // namespace rankslice
