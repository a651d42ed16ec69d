#include "copied_slices.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>
#include <utility>

#include "rankslice/error.hpp"

#include "io/file.hpp"
#include "support/hand_model.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;

BlockDone const kDone = [](std::uint64_t) {};

/// Turn a tensor into codes with block scales, which follow at the end of the model.
void quantise(Model& model, std::uint32_t index) {
  auto scales = model.tensors[index];
  for (auto axis = scales.shape.end() - 2; axis != scales.shape.end(); ++axis) *axis = (*axis + 127) / 128;
  scales.key += "_scale_inv";
  scales.dtype = DType::F32;
  scales.is_scales = true;
  auto& weight = model.tensors[index];
  weight.dtype = model.parameters[weight.parameter].hf_dtype = DType::F8_E4M3;
  weight.scales = static_cast<std::uint32_t>(model.tensors.size());
  model.parameters[weight.parameter].scale_bytes += byte_size(DType::F32, scales.shape);
  model.tensors.push_back(scales);
}

/// A dense matrix with partial edge blocks, grouped experts of both layouts and split ones, all quantised; and a vector
/// that was narrowed.
Model copied_model() {
  Model model;
  test::append_dense(model, "dense.weight", DType::BF16, DType::BF16, {300, 260});
  test::append_grouped(model, "grouped.down_proj", {3, 130, 129});
  test::append_grouped(model, "same.down_proj", {3, 130, 129}, Layout::same);
  test::append_split(model, "split", 3, 132, 129);
  for (std::uint32_t i = 0, count = static_cast<std::uint32_t>(model.tensors.size()); i < count; ++i)
    quantise(model, i);
  test::append_dense(model, "narrowed.weight", DType::F32, DType::BF16, {1000});
  return model;
}

/// The tensors of a model in two files, from the first or from the last on, so that each has other places in both.
Storage storage_in(std::string const& folder, Model const& model, bool backwards) {
  std::vector<Extent> places(model.tensors.size());
  Storage storage{.form = Form::hf, .files = {{"a", folder + "a"}, {"b", folder + "b"}}, .pieces = {}};
  for (auto& file : storage.files) file.size = 11;
  for (std::size_t i = 0; i < places.size(); ++i) {
    auto const tensor = backwards ? places.size() - 1 - i : i;
    auto& size = storage.files[i % 2].size;
    auto const bytes = byte_size(model.tensors[tensor].dtype, model.tensors[tensor].shape);
    places[tensor] = {.file = static_cast<std::uint32_t>(i % 2), .bytes = {size, size + bytes}};
    size += bytes;
  }
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    for (auto const tensor : model.parameters[i].tensors) {
      auto slice = model.parameters[i].whole();
      if (model.parameters[i].stacked_experts) slice.part = model.tensors[tensor].experts;
      auto& piece = storage.pieces.emplace_back(StoredPiece{i, tensor, slice, places[tensor]});
      if (model.tensors[tensor].scales) piece.scales = places[*model.tensors[tensor].scales];
    }
  }
  return storage;
}

class CopiedSlices : public testing::Test {
 protected:
  CopiedSlices() {
    for (std::size_t i = 0; i < source_.files.size(); ++i) {
      auto const bytes = test::random_bytes(source_.files[i].size, i);
      auto writer = FileWriter::create(source_.files[i].path);
      writer.write(bytes, 0);
      writer.close();
      auto empty = FileWriter::create(target_.files[i].path);
      empty.allocate(target_.files[i].size);
      empty.close();
    }
  }

  [[nodiscard]] static Bytes bytes_at(Storage const& storage, Extent const& extent) {
    auto const file = test::file_bytes(storage.files[extent.file].path);
    return {file.begin() + static_cast<std::ptrdiff_t>(extent.bytes.begin),
            file.begin() + static_cast<std::ptrdiff_t>(extent.bytes.end)};
  }
  void expect_copied() const {
    for (std::size_t i = 0; i < source_.pieces.size(); ++i) {
      auto const& [from, to] = std::pair(source_.pieces[i], target_.pieces[i]);
      auto const& key = model_.tensors[from.tensor].key;
      EXPECT_TRUE(bytes_at(source_, from.extent) == bytes_at(target_, to.extent)) << key;
      if (!from.scales) continue;
      EXPECT_TRUE(bytes_at(source_, *from.scales) == bytes_at(target_, *to.scales)) << key;
    }
  }

  test::TempDir dir_;
  Model const model_ = copied_model();
  Storage const source_ = storage_in(dir_.file("source_"), model_, false);
  Storage const target_ = storage_in(dir_.file("target_"), model_, true);
};

std::vector<PlannedSlice> all_of(Model const& model) {
  std::vector<PlannedSlice> all;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) all.push_back({i, model.parameters[i].whole()});
  return all;
}

// Rule 59: cuts need not lie on the edges of blocks. Who has the first element of a block copies its scale.
TEST_F(CopiedSlices, Rule59_PartsThatAreCutAnywhereMakeUpTheWhole) {
  auto const whole = copy_slices(model_, all_of(model_), source_, target_, {}, kDone);
  std::mt19937 random(59);
  for (int round = 0; round < 20; ++round) {
    for (auto const& file : target_.files) {
      auto wiped = FileWriter::open(file.path);
      wiped.write(Bytes(file.size), 0);
      wiped.close();
    }
    Digests sum(model_);
    for (auto const& [parameter, all] : all_of(model_)) {
      for (std::uint64_t begin = 0; begin < all.part.end;) {
        auto const most = model_.parameters[parameter].stacked_experts ? 2U : 30'000U;
        auto const end = std::min<std::uint64_t>(all.part.end, begin + 1 + random() % most);
        std::vector<PlannedSlice> const part{{parameter, {.part = {begin, end}, .rows = all.rows}}};
        auto const copied = copy_slices(model_, part, source_, target_, {}, kDone);
        check_copies(model_, part, target_, copied, kDone);
        for (std::size_t i = 0; i < sum.source.values().size(); ++i) {
          sum.source.values()[i] += copied.source.values()[i];
        }
        begin = end;
      }
    }
    EXPECT_TRUE(std::ranges::equal(sum.source.values(), whole.source.values())) << "each element and scale once";
    expect_copied();
  }
}

TEST_F(CopiedSlices, DigestsAreThoseOfTheTensors) {
  auto const copied = copy_slices(model_, all_of(model_), source_, target_, {}, kDone);
  for (auto const& piece : source_.pieces) {
    auto const& tensor = model_.tensors[piece.tensor];
    auto const expected =
        test::naive_digest(element_bytes(tensor.dtype), tensor.shape, bytes_at(source_, piece.extent));
    EXPECT_TRUE(std::ranges::equal(copied.source.of(piece.tensor), expected)) << tensor.key;
    if (!piece.scales) continue;
    auto const& scales = model_.tensors[*tensor.scales];
    auto const of_scales =
        test::naive_digest(element_bytes(scales.dtype), scales.shape, bytes_at(source_, *piece.scales));
    EXPECT_TRUE(std::ranges::equal(copied.source.of(*tensor.scales), of_scales)) << scales.key;
  }
}

TEST_F(CopiedSlices, ACopyThatReadsBackDifferentlyIsNamed) {
  auto const copied = copy_slices(model_, all_of(model_), source_, target_, {}, kDone);
  for (auto const& piece : target_.pieces) {
    auto const& extent = piece.scales.value_or(piece.extent);
    auto const tensor = piece.scales ? *model_.tensors[piece.tensor].scales : piece.tensor;
    auto const& path = target_.files[extent.file].path;
    test::flip_byte(path, extent.bytes.end - 1);
    try {
      check_copies(model_, all_of(model_), target_, copied, kDone);
      FAIL() << model_.tensors[tensor].key;
    } catch (VerifyError const& error) {
      EXPECT_EQ(error.tensor, model_.tensors[tensor].key);
      EXPECT_EQ(error.file, target_.files[extent.file].name);
    }
    test::flip_byte(path, extent.bytes.end - 1);
  }
  EXPECT_NO_THROW(check_copies(model_, all_of(model_), target_, copied, kDone));
}

}  // namespace
}  // namespace rankslice
