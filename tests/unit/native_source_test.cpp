#include "native_source.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/memory.hpp"
#include "read_batches.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// A dense tensor of a little more than two buffers of 4 MiB, and 6 experts of [70, 50].
constexpr std::uint64_t kElements = 4_MiB + 5;
constexpr std::uint64_t kExpert = 70 * 50 * 2;
constexpr std::uint32_t kDense = 0, kStacked = 1;
Shape const kStackedShape{6, 70, 50};

Model two_tensors() {
  return {
      .tensors = {{.key = "dense", .shape = {kElements}, .parameter = 0},
                  {.key = "experts", .shape = kStackedShape, .parameter = 1, .experts = {0, 6}, .columns = {0, 70}}},
      .parameters = {{.fqn = "native.dense", .shape = {kElements}, .tensors = {0}},
                     {.fqn = "native.experts",
                      .shape = {6, 50, 70},
                      .layout = Layout::swapped,
                      .stacked_experts = true,
                      .tensors = {1}}}};
}

/// These experts whole, or these elements.
PlannedSlice planned(std::uint32_t parameter, Range part) {
  return {parameter, {.part = part, .rows = parameter == kDense ? Range{0, 1} : Range{0, 50}}};
}

Bytes slice(Bytes const& bytes, std::uint64_t begin, std::uint64_t end) {
  return {bytes.begin() + std::ptrdiff_t(begin), bytes.begin() + std::ptrdiff_t(end)};
}

/// Every slice that a source gave, and the bytes of all of them; the memory may hold more.
struct Given {
  std::vector<Slice> slices;
  Bytes bytes;
  [[nodiscard]] std::vector<Range> parts() const {
    std::vector<Range> parts;
    for (auto const& slice : slices) parts.push_back(slice.part);
    return parts;
  }
};

Given all_of(NativeSource& source, PlannedSlice const& wanted) {
  auto const row_bytes = wanted.parameter == kDense ? 2 : kExpert / 50;
  Given given;
  source.for_each_box(wanted, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
    given.slices.push_back(slice);
    for (auto part = slice.part.begin; part < slice.part.end; ++part) {
      auto const row = (part - box.slice.part.begin) * box.slice.rows.size() + slice.rows.begin - box.slice.rows.begin;
      auto const* const data = box.data + row * row_bytes;
      given.bytes.insert(given.bytes.end(), data, data + slice.rows.size() * row_bytes);
    }
  });
  return given;
}

// ---- what a rank holds ----

class Held : public testing::Test {
 protected:
  Held() {
    auto source = std::make_shared<Checkpoint>();
    source->path = "/the/source";
    source->model = two_tensors();
    state_.source = source;
    add(kDense, {kElements}, {0});
    add(kStacked, {3, 50, 70}, {2, 0, 0});  // experts 2, 3 and 4
  }

  void add(std::uint32_t index, Shape const& local, Shape const& offsets) {
    auto const parameter = two_tensors().parameters[index];
    auto const bytes = test::random_bytes(byte_size(DType::BF16, local), index);
    auto const buffer = allocate_host(bytes.size());
    std::ranges::copy(bytes, buffer.data.get());
    state_.tensors[parameter.fqn] = {.parameter = parameter,
                                     .local_shape = local,
                                     .offsets = offsets,
                                     .placements = std::vector<Placement>(3),
                                     .data = buffer,
                                     .index = index};
    values_[index] = bytes;
  }
  void expect_refused(std::string const& fqn, std::string const& message) {
    try {
      HeldTensors const held(state_);
      ADD_FAILURE() << "no error";
    } catch (PlanError const& error) {
      EXPECT_EQ(error.tensor, fqn);
      EXPECT_THAT(error.what(), AllOf(HasSubstr(fqn), HasSubstr(message)));
    }
  }

  StateDict state_;
  std::array<Bytes, 2> values_;
};

TEST_F(Held, PartsAreGivenAsTheyLieInMemory) {
  HeldTensors held(state_);
  auto const experts = all_of(held, planned(kStacked, {3, 5}));
  EXPECT_THAT(experts.parts(), ElementsAre(Range{3, 5}));
  EXPECT_TRUE(experts.bytes == slice(values_[kStacked], kExpert, 3 * kExpert));
  auto const elements = all_of(held, planned(kDense, {7, 9}));
  EXPECT_TRUE(elements.bytes == slice(values_[kDense], 14, 18));
  held.for_each_box(planned(kDense, {7, 9}), [&](Slice const&, NativeBox<std::byte const> const& box) {
    EXPECT_EQ(box.data, state_.tensors.at("native.dense").data.data.get()) << "without a copy";
  });
}

TEST_F(Held, ASliceThatAnotherRankHoldsIsAnError) {
  HeldTensors held(state_);
  for (auto const part : {Range{0, 1}, Range{1, 3}, Range{4, 6}, Range{5, 6}}) {
    try {
      (void)all_of(held, planned(kStacked, part));
      ADD_FAILURE() << part.begin;
    } catch (PlanError const& error) {
      EXPECT_EQ(error.tensor, "native.experts");
      EXPECT_THAT(error.what(), HasSubstr("holds [2, 5) × [0, 50), not ["));
    }
  }
}

TEST_F(Held, AMissingTensorIsNamedWithTheSourceThatHasIt) {
  state_.tensors.erase("native.dense");
  expect_refused("native.dense", "/the/source");
}

TEST_F(Held, ABufferOfAnotherSizeThanItsShapeIsAnError) {
  auto& tensor = state_.tensors.at("native.experts");
  auto const right = tensor;
  tensor.data.bytes -= 2;
  expect_refused("native.experts", "takes 21000 bytes, its buffer has 20998");
  tensor = right;
  tensor.local_shape[0] = 4;
  expect_refused("native.experts", "[4, 50, 70] takes 28000 bytes, its buffer has 21000");
}

TEST_F(Held, TensorsUnderEachOthersNamesAreAnError) {
  std::swap(state_.tensors.at("native.dense"), state_.tensors.at("native.experts"));
  expect_refused("native.dense", "has native.experts under this name");
}

TEST_F(Held, ATensorThatIsNoneOfTheSourceIsAnError) {
  for (auto const index : {1U - kDense, 2U, ~0U}) {
    state_.tensors.at("native.dense").index = index;
    expect_refused("native.dense", "is not parameter " + std::to_string(index) + " of /the/source");
  }
}

TEST_F(Held, AStateWithoutASourceIsAnError) {
  state_.source.reset();
  expect_refused("", "no source");
}

// ---- what a file holds ----

class Streamed : public testing::Test {
 protected:
  Streamed() {
    Bytes file(3);
    file.insert(file.end(), dense_.begin(), dense_.end());
    file.insert(file.end(), experts_.begin(), experts_.end());
    test::write_file(path_, file);
    auto const middle = 3 + dense_.size();
    storage_ = {.form = Form::hf,
                .files = {{"a", path_, file.size(), 0}},
                .pieces = {{kDense, 0, planned(kDense, {0, kElements}).slice, {0, {3, middle}}},
                           {kStacked, 1, planned(kStacked, {0, 6}).slice, {0, {middle, file.size()}}}}};
  }

  test::TempDir dir_;
  std::string const path_ = dir_.file("a");
  Bytes const dense_ = test::random_bytes(2 * kElements, 1);
  Bytes const experts_ = test::random_bytes(6 * kExpert, 2);
  Model const model_ = two_tensors();
  Storage storage_;
};

TEST_F(Streamed, ExpertsComeOneAtATimeInTheNativeForm) {
  StreamedTensors streamed(storage_, model_);
  auto const given = all_of(streamed, planned(kStacked, {1, 5}));
  EXPECT_THAT(given.parts(), ElementsAre(Range{1, 2}, Range{2, 3}, Range{3, 4}, Range{4, 5}));
  auto const native = test::swap_axes(experts_, kStackedShape, 2);
  EXPECT_TRUE(given.bytes == slice(native, kExpert, 5 * kExpert));
}

TEST_F(Streamed, DenseTensorsComeInPiecesOfAFewMiB) {
  StreamedTensors streamed(storage_, model_);
  auto const given = all_of(streamed, planned(kDense, {1, kElements}));
  EXPECT_TRUE(given.bytes == slice(dense_, 2, 2 * kElements));
  ASSERT_EQ(given.slices.size(), 3U);
  for (auto const& part : given.parts()) EXPECT_LE(part.size() * 2, 4_MiB);
}

TEST_F(Streamed, OneBufferServesEveryBox) {
  StreamedTensors streamed(storage_, model_);
  std::vector<std::byte const*> addresses;
  for (auto const& wanted : {planned(kDense, {0, kElements}), planned(kStacked, {0, 6})}) {
    streamed.for_each_box(wanted,
                          [&](Slice const&, NativeBox<std::byte const> const& box) { addresses.push_back(box.data); });
  }
  ASSERT_EQ(addresses.size(), 3U + 6U);
  EXPECT_THAT(addresses, testing::Each(addresses.front()));
}

TEST_F(Streamed, WhatIsExpectedComesTheSameWhicheverWayAndWhateverIsAskedForThen) {
  std::vector const plan{planned(kDense, {1, kElements}), planned(kStacked, {1, 5})};
  auto const native = test::swap_axes(experts_, kStackedShape, 2);
  for (auto const way : {ReadBackend::automatic, ReadBackend::pread, ReadBackend::direct}) {
    StreamedTensors streamed(storage_, model_, {.backend = way, .cache = PageCache::drop});
    for (auto const& expected : {plan, {}, {plan[1], plan[0]}, {plan[1]}}) {
      streamed.expect(expected);
      for (int pass = 0; pass < 2; ++pass) {
        EXPECT_TRUE(all_of(streamed, plan[0]).bytes == slice(dense_, 2, 2 * kElements));
        EXPECT_TRUE(all_of(streamed, plan[1]).bytes == slice(native, kExpert, 5 * kExpert));
      }
    }
    EXPECT_NO_THROW(streamed.check_unchanged());
  }
}

TEST_F(Streamed, AChangeIsAnErrorBeforeSomethingElseIsExpected) {
  std::filesystem::last_write_time(path_, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  StreamedTensors streamed(storage_, model_);
  (void)all_of(streamed, planned(kStacked, {0, 1}));
  test::flip_byte(path_, 0);
  EXPECT_THROW(streamed.expect({planned(kDense, {0, 1})}), IoError);
}

TEST(Batches, HoldEveryItemOnceAndInOrderAndEndWithAGibibyte) {
  auto const batches = [](std::vector<std::uint64_t> const& sizes) {
    return in_batches(sizes, [](std::uint64_t bytes) { return bytes; });
  };
  EXPECT_THAT(batches({}), testing::IsEmpty());
  EXPECT_THAT(batches({0, 0}), ElementsAre(Range{0, 2}));
  EXPECT_THAT(batches({1_GiB - 1, 1, 1_GiB, 3, 4}), ElementsAre(Range{0, 2}, Range{2, 3}, Range{3, 5}));
  EXPECT_THAT(batches({3_GiB}), ElementsAre(Range{0, 1}));
}

TEST_F(Streamed, WhatWasReadIsDigestedOnceAsTheFileStoresIt) {
  StreamedTensors streamed(storage_, model_);
  (void)all_of(streamed, planned(kStacked, {1, 3}));
  (void)all_of(streamed, planned(kStacked, {4, 5}));
  (void)all_of(streamed, planned(kDense, {0, kElements}));
  auto const expected = test::naive_digest(2, kStackedShape, experts_);
  EXPECT_THAT(streamed.read().source.of(kStacked), ElementsAre(0, expected[1], expected[2], 0, expected[4], 0));
  EXPECT_THAT(streamed.read().source.of(kDense), testing::ElementsAreArray(test::naive_digest(2, {kElements}, dense_)));
}

TEST_F(Streamed, APieceMayLieInSeveralFiles) {
  storage_.form = Form::native;
  storage_.files.clear();
  storage_.pieces.clear();
  for (std::uint32_t file = 0; file < 3; ++file) {  // a dense tensor is never divided in fact
    auto const path = dir_.file("part" + std::to_string(file));
    Range const part{file * std::uint64_t{1000}, (file + 1) * std::uint64_t{1000}};
    test::write_file(path, slice(dense_, 2 * part.begin, 2 * part.end));
    storage_.files.push_back({path, path, 2000, 0});
    storage_.pieces.push_back({kDense, 0, {.part = part}, {file, {0, 2000}}});
  }
  StreamedTensors streamed(storage_, model_);
  auto const given = all_of(streamed, planned(kDense, {500, 2500}));
  EXPECT_THAT(given.parts(), ElementsAre(Range{500, 2500}));
  EXPECT_TRUE(given.bytes == slice(dense_, 1000, 5000));
  EXPECT_THAT(streamed.read().source.of(kDense),
              testing::ElementsAreArray(test::naive_digest(2, {kElements}, dense_, {500, 2500})));
}

TEST_F(Streamed, AFileThatChangesMeanwhileIsAnError) {
  std::filesystem::last_write_time(path_, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  StreamedTensors streamed(storage_, model_);
  (void)all_of(streamed, planned(kStacked, {0, 1}));
  EXPECT_NO_THROW(streamed.check_unchanged());
  test::flip_byte(path_, 0);
  EXPECT_THROW(streamed.check_unchanged(), IoError);
}

}  // namespace
}  // namespace rankslice
