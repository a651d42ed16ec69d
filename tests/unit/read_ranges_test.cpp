// Which bytes of a file are read for a slice, against an enumeration of its elements.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "hf_target.hpp"
#include "plan/plan.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

constexpr std::uint64_t kFirstByte = 11;  // data need not be aligned
constexpr std::uint64_t kBf16 = 2;

/// Where the elements of a slice stand in a file of so many bytes; as the longest runs.
class Enumeration {
 public:
  explicit Enumeration(std::uint64_t file_bytes) : wanted_(file_bytes) {}

  void add(std::uint64_t offset, std::uint64_t bytes) {
    for (auto i = offset; i < offset + bytes; ++i) wanted_.at(i) = true;
  }
  [[nodiscard]] std::vector<Range> runs() const {
    std::vector<Range> runs;
    for (std::uint64_t i = 0; i < wanted_.size(); ++i) {
      if (!wanted_[i]) continue;
      if (runs.empty() || runs.back().end != i) runs.push_back({i, i});
      ++runs.back().end;
    }
    return runs;
  }

 private:
  std::vector<bool> wanted_;
};

/// Call step(expert, row, column) for the elements of a slice of a stacked parameter.
template <typename Step>
void for_each_element(Parameter const& parameter, Slice const& slice, Step const& step) {
  for (auto e = slice.part.begin; e < slice.part.end; ++e) {
    for (auto row = slice.rows.begin; row < slice.rows.end; ++row) {
      for (std::uint64_t column = 0; column < parameter.shape[2]; ++column) step(e, row, column);
    }
  }
}

/// The bytes of an HF tensor that hold a slice of its parameter.
std::vector<Range> bytes_of(Model const& model, StoredPiece const& piece, Slice const& slice) {
  auto const& tensor = model.tensors[piece.tensor];
  auto const& parameter = model.parameters[tensor.parameter];
  auto const stored_rows = tensor.shape[tensor.shape.size() - 2], stored_columns = tensor.shape.back();
  Enumeration bytes(piece.extent.bytes.end);
  for_each_element(parameter, slice, [&](std::uint64_t e, std::uint64_t row, std::uint64_t column) {
    if (column < tensor.columns.begin || column >= tensor.columns.end) return;
    auto r = row, c = column - tensor.columns.begin;
    if (parameter.layout == Layout::swapped) std::swap(r, c);
    auto const index = ((e - tensor.experts.begin) * stored_rows + r) * stored_columns + c;
    bytes.add(piece.extent.bytes.begin + index * kBf16, kBf16);
  });
  return bytes.runs();
}

/// The bytes of a piece [part, rows, columns] of a native file that hold a slice.
std::vector<Range> bytes_of_native(Parameter const& parameter, StoredPiece const& piece, Slice const& slice) {
  auto const& held = piece.slice;
  Enumeration bytes(piece.extent.bytes.end);
  for_each_element(parameter, slice, [&](std::uint64_t e, std::uint64_t row, std::uint64_t column) {
    auto const before = (e - held.part.begin) * held.rows.size() + row - held.rows.begin;
    bytes.add(piece.extent.bytes.begin + (before * parameter.shape[2] + column) * kBf16, kBf16);
  });
  return bytes.runs();
}

/// Every slice within another that is not empty.
std::vector<Slice> slices_within(Slice const& box) {
  std::vector<Slice> slices;
  for (auto p = box.part.begin; p < box.part.end; ++p) {
    for (auto q = p + 1; q <= box.part.end; ++q) {
      for (auto r = box.rows.begin; r < box.rows.end; ++r) {
        for (auto s = r + 1; s <= box.rows.end; ++s) slices.push_back({.part = {p, q}, .rows = {r, s}});
      }
    }
  }
  return slices;
}

/// Grouped and split experts with swapped axes, and grouped ones as they are.
Model every_layout() {
  auto model = test::split_model(3, 4, 2);
  test::append_grouped(model, "as.is", {3, 4, 5}, Layout::same);
  return model;
}

TEST(ReadRanges, OfFilesWithSwappedAxesAreTheWholeRowsOfItsExperts) {
  auto const model = every_layout();
  int split = 0, grouped = 0;
  for (auto const& piece : hf_pieces(test::catalog_of(model, kFirstByte), model)) {
    auto const& parameter = model.parameters[piece.parameter];
    if (!parameter.stacked_experts || parameter.layout == Layout::same) continue;
    ++(parameter.tensors.size() > 1 ? split : grouped);
    for (auto const& slice : slices_within(piece.slice)) {
      Slice const read{.part = slice.part, .rows = {0, parameter.shape[1]}};
      EXPECT_EQ(read_ranges(model, Form::hf, {.piece = &piece, .slice = slice}), bytes_of(model, piece, read))
          << model.tensors[piece.tensor].key << " " << to_string(slice);
    }
  }
  EXPECT_EQ(grouped, 2);
  EXPECT_EQ(split, 9);
}

TEST(ReadRanges, OfFilesWithTheNativeAxesAreExactlyTheRows) {
  auto const model = every_layout();
  auto const pieces = hf_pieces(test::catalog_of(model, kFirstByte), model);
  auto const& piece = pieces.back();
  ASSERT_EQ(model.tensors[piece.tensor].key, "as.is");
  for (auto const& slice : slices_within(piece.slice)) {
    EXPECT_EQ(read_ranges(model, Form::hf, {.piece = &piece, .slice = slice}), bytes_of(model, piece, slice))
        << to_string(slice);
  }
}

TEST(ReadRanges, OfLongRowsAreExactlyTheColumns) {
  auto const model = test::split_model(2, 70'000, 2);
  std::vector<Slice> const slices{{.part = {0, 2}, .rows = {0, 35'000}},
                                  {.part = {1, 2}, .rows = {100, 32'868}},
                                  {.part = {0, 1}, .rows = {35'000, 70'000}},
                                  {.part = {0, 2}, .rows = {0, 70'000}}};
  int checked = 0;
  for (auto const& piece : hf_pieces(test::catalog_of(model, kFirstByte), model)) {
    auto const& parameter = model.parameters[piece.parameter];
    if (!parameter.stacked_experts || parameter.shape[1] != 70'000) continue;  // G alone, grouped and split
    for (auto const& of_all : slices) {
      auto const slice = intersection(of_all, piece.slice);
      if (slice.empty()) continue;
      ++checked;
      EXPECT_EQ(read_ranges(model, Form::hf, {.piece = &piece, .slice = slice}), bytes_of(model, piece, slice))
          << model.tensors[piece.tensor].key << " " << to_string(slice);
    }
  }
  EXPECT_EQ(checked, 4 + 2 * (3 + 3)) << "grouped, and gate and up of two experts";
}

TEST(ReadRanges, OfNativePiecesAreExactlyTheRowsThere) {
  Model model;
  test::append_grouped(model, "experts", {6, 5, 3});
  auto const& parameter = model.parameters.front();
  for (auto const& held : slices_within({.part = {1, 4}, .rows = {0, 5}})) {
    StoredPiece const piece{
        .slice = held,
        .extent = {.file = 0, .bytes = {kFirstByte, kFirstByte + held.part.size() * held.rows.size() * 3 * kBf16}}};
    for (auto const& slice : slices_within(held)) {
      EXPECT_EQ(read_ranges(model, Form::native, {.piece = &piece, .slice = slice}),
                bytes_of_native(parameter, piece, slice))
          << to_string(slice) << " of " << to_string(held);
    }
  }
}

TEST(ReadRanges, OfDenseTensorsAreItsElementsInTheFormOfTheFile) {
  Model model;
  test::append_dense(model, "converted", DType::BF16, DType::F32, {2, 5});
  test::append_dense(model, "sub-byte", DType::F4, DType::F4, {2, 5});
  StoredPiece const converted{.slice = {.part = {0, 10}}, .extent = {.file = 0, .bytes = {100, 120}}};
  StoredPiece const loaded{.slice = {.part = {0, 10}}, .extent = {.file = 0, .bytes = {100, 140}}};
  StoredPiece const packed{
      .parameter = 1, .tensor = 1, .slice = {.part = {0, 5}}, .extent = {.file = 0, .bytes = {7, 12}}};
  Slice const slice{.part = {2, 5}};
  EXPECT_EQ(read_ranges(model, Form::hf, {&converted, slice}), (std::vector<Range>{{104, 110}}));
  EXPECT_EQ(read_ranges(model, Form::native, {&loaded, slice}), (std::vector<Range>{{108, 120}}));
  EXPECT_EQ(read_ranges(model, Form::hf, {&packed, slice}), (std::vector<Range>{{9, 12}}));
}

TEST(ReadRanges, OfNothingAreNone) {
  auto const model = every_layout();
  auto const pieces = hf_pieces(test::catalog_of(model), model);
  for (auto const& piece : pieces) {
    EXPECT_TRUE(read_ranges(model, Form::hf, {&piece, {.part = {1, 1}, .rows = {0, 1}}}).empty());
    EXPECT_TRUE(read_ranges(model, Form::hf, {&piece, {.part = {0, 1}, .rows = {1, 1}}}).empty());
  }
}

TEST(ReadRanges, OfAllThatARankLoadsAddUpToItsPlan) {
  for (auto const hidden : {24U, 131'072U}) {
    auto const model = test::split_model(5, hidden, 4);
    auto const catalog = test::catalog_of(model);
    Storage const storage{.form = Form::hf, .files = catalog.files, .pieces = hf_pieces(catalog, model)};
    for (Mesh const mesh : {Mesh{1, 1, 3}, Mesh{1, 2, 2}, Mesh{2, 4, 7}}) {
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        auto const plan = make_load_plan(model, Form::hf, mesh, mesh.coordinate(rank));
        std::uint64_t bytes = 0;
        for (auto const& wanted : plan.slices) {
          for (auto const& located : locate(storage, model, wanted)) {
            for (auto const& range : read_ranges(model, Form::hf, located)) bytes += range.size();
          }
        }
        EXPECT_EQ(bytes, plan.bytes_read) << "rank " << rank << " of " << mesh.ep_shard << " x " << mesh.ep;
      }
    }
  }
}

}  // namespace
}  // namespace rankslice
