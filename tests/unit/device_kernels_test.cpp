// What the threads of the GPU's kernels do, thread by thread on the CPU, against the definitions: where no GPU is, this
// is how the kernels are known to be right.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "device/transpose_tile.hpp"
#include "device/word_boxes.hpp"
#include "support/example_parameter.hpp"
#include "transform/device_digest.hpp"
#include "transform/parameter_digest.hpp"

namespace rankslice {
namespace {

using test::Bytes;

// ---- transpose ----

template <typename Element>
std::vector<Element> numbered(std::uint64_t count) {
  std::vector<Element> elements(count);
  for (std::uint64_t i = 0; i < count; ++i) elements[i] = static_cast<Element>((i + 1) * 0x9E37'79B9'7F4A'7C15U >> 7);
  return elements;
}

/// All blocks one after the other, and in each the two halves of the kernel with the barrier between them.
template <typename Element>
void run_transpose(TransposeTask<Element> const& task) {
  for (std::uint64_t tile = 0; tile < tile_count(task.rows, task.columns); ++tile) {
    TransposeTile<Element> shared{};
    for (std::uint32_t thread = 0; thread < kTileThreads; ++thread) load_tile(task, tile, thread, shared);
    for (std::uint32_t thread = 0; thread < kTileThreads; ++thread) store_tile(task, tile, thread, shared);
  }
}

template <typename Element>
void expect_transposed() {
  for (std::uint64_t const rows : {1U, 31U, 32U, 33U, 100U}) {
    for (std::uint64_t const columns : {1U, 5U, 32U, 64U, 65U}) {
      auto const stride = rows + 3;
      auto const in = numbered<Element>(rows * columns);
      std::vector<Element> out(columns * stride, Element{0x5a});
      run_transpose<Element>(
          {.from = in.data(), .to = out.data(), .rows = rows, .columns = columns, .to_stride = stride});
      for (std::uint64_t i = 0; i < out.size(); ++i) {
        auto const row = i % stride, column = i / stride;
        auto const expected = row < rows ? in[row * columns + column] : Element{0x5a};
        ASSERT_EQ(out[i], expected) << rows << " x " << columns << " at " << row << ", " << column;
      }
    }
  }
}

TEST(TransposeKernel, TransposesMatricesOfAnySizeAndTouchesNothingElse) {
  expect_transposed<std::uint8_t>();
  expect_transposed<std::uint16_t>();
  expect_transposed<std::uint32_t>();
  expect_transposed<std::uint64_t>();
}

/// How many of the 32 banks, of 4 bytes each, the 32 addresses of a warp fall into; the same word counts once.
template <typename Element>
std::size_t banks_of_a_column() {
  std::vector<std::size_t> words, banks;
  auto const lanes = sizeof(Element) == 8 ? kTileSide / 2 : kTileSide;  // of 8 bytes, half a warp goes at a time
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    words.push_back(lane * TransposeTile<Element>::kPitch * sizeof(Element) / 4);
  }
  words.erase(std::unique(words.begin(), words.end()), words.end());
  for (auto const word : words) banks.push_back(word % 32);
  std::ranges::sort(banks);
  return static_cast<std::size_t>(std::unique(banks.begin(), banks.end()) - banks.begin()) * 100 / words.size();
}

TEST(TransposeKernel, ColumnsOfATileAreInDifferentBanks) {
  EXPECT_EQ(banks_of_a_column<std::uint8_t>(), 100U);
  EXPECT_EQ(banks_of_a_column<std::uint16_t>(), 100U);
  EXPECT_EQ(banks_of_a_column<std::uint32_t>(), 100U);
  EXPECT_EQ(banks_of_a_column<std::uint64_t>(), 100U);
}

// ---- digest ----

/// q(e) of every entry: the sum of what all threads of all blocks weigh.
std::vector<std::uint64_t> run_digest(DigestBox const& box) {
  std::vector<std::uint64_t> sums(box.entries);
  for_each_word_box(box, [&](auto const& words) {
    for (std::uint64_t panel = 0; panel < words.entries * panels_per_entry(words); ++panel) {
      for (std::uint32_t thread = 0; thread < kPanelThreads; ++thread) {
        sums[panel / panels_per_entry(words)] += weigh_panel(words, panel, thread);
      }
    }
  });
  return sums;
}

/// The numbers of a slice as the host's digest has them, by tensor.
std::vector<std::uint64_t> digest_by_kernel(test::ExampleParameter const& example, Slice const& slice) {
  auto const native = example.native_of(slice);
  std::vector<std::uint64_t> aligned(native.size() / 8 + 1);  // as device memory is
  if (!native.empty()) std::memcpy(aligned.data(), native.data(), native.size());
  auto const* const data = reinterpret_cast<std::byte const*>(aligned.data());
  auto table = DigestTable(example.model.tensors);
  for (auto const& [tensor, first_entry, box] : boxes_of(example.model, example.parameter(), slice, data)) {
    auto e = first_entry;
    for (auto const q : run_digest(box)) {
      table.of(tensor)[e] += expert_factor(e) * q;
      ++e;
    }
  }
  return {table.values().begin(), table.values().end()};
}

/// By the definition, word by word.
std::vector<std::uint64_t> digest_by_definition(test::ExampleParameter const& example, Slice const& slice) {
  std::vector<std::uint64_t> numbers;
  for (auto const& of_tensor : example.digests(slice).source) {
    numbers.insert(numbers.end(), of_tensor.begin(), of_tensor.end());
  }
  return numbers;
}

void expect_digested(test::ExampleParameter const& example, Slice const& slice) {
  EXPECT_EQ(digest_by_kernel(example, slice), digest_by_definition(example, slice))
      << name(example.parameter().dtype) << " " << to_string(example.parameter().shape) << " " << to_string(slice);
}

constexpr auto kWidths = {DType::U8, DType::BF16, DType::F32, DType::I64};

TEST(DigestKernel, WeighsExpertsAndSomeOfTheirRowsInEveryLayout) {
  for (auto const dtype : kWidths) {
    for (auto const& example : {test::swapped(dtype, {3, 40, 30}), test::stacked_as_is(dtype, {3, 30, 40}),
                                test::split(dtype, 3, 2, {20, 30}), test::split(dtype, 3, 1, {40, 30})}) {
      auto const whole = example.whole();
      expect_digested(example, whole);
      expect_digested(example, {.part = {1, 3}, .rows = whole.rows});
      expect_digested(example, {.part = {1, 2}, .rows = {7, whole.rows.end - 4}});
      expect_digested(example, {.part = {1, 1}, .rows = whole.rows});
    }
  }
}

// Panels of 256 lines and 256 positions.
TEST(DigestKernel, WeighsMatricesAroundThePanelSize) {
  for (std::uint64_t const rows : {1U, 255U, 256U, 257U}) {
    for (std::uint64_t const columns : {1U, 31U, 256U, 300U}) {
      auto const example = test::swapped(DType::BF16, {2, rows, columns});
      expect_digested(example, example.whole());
    }
  }
}

TEST(DigestKernel, WeighsDenseTensorsOfEveryRankAndAnyRunOfThem) {
  for (auto const dtype : kWidths) {
    for (auto const& shape : {Shape{}, Shape{70}, Shape{7, 9}, Shape{4, 5, 3}, Shape{3, 2, 4, 5}, Shape{0, 3}}) {
      auto const example = test::dense(dtype, shape);
      auto const count = example.whole().part.end;
      for (std::uint64_t const begin : {std::uint64_t{0}, count / 5, count / 2}) {
        for (auto const end : {begin, (begin + count) / 2, count}) {
          expect_digested(example, {.part = {begin, end}, .rows = {0, 1}});
        }
      }
    }
  }
  auto const packed = test::dense(DType::F4, {3, 8});
  expect_digested(packed, packed.whole());
}

}  // namespace
}  // namespace rankslice
