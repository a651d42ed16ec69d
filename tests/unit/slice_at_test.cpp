#include "core/slice_at.hpp"

#include <gtest/gtest.h>

namespace rankslice {
namespace {

Parameter dense(DType dtype, Shape const& shape) {
  return {.fqn = {}, .hf_dtype = dtype, .dtype = dtype, .shape = shape, .tensors = {}};
}

Parameter stacked(Shape const& shape) { return {.fqn = {}, .shape = shape, .stacked_experts = true, .tensors = {}}; }

TEST(SliceAt, SomeOfAxis0OfADenseTensorIsARangeOfItsElements) {
  auto const matrix = dense(DType::BF16, {6, 5, 2});
  EXPECT_EQ(slice_at(matrix, {0, 0, 0}, {6, 5, 2}), (Slice{.part = {0, 60}}));
  EXPECT_EQ(slice_at(matrix, {2, 0, 0}, {3, 5, 2}), (Slice{.part = {20, 50}}));
  EXPECT_EQ(slice_at(matrix, {6, 0, 0}, {0, 5, 2}), (Slice{.part = {60, 60}}));
  EXPECT_EQ(slice_at(dense(DType::F32, {}), {}, {}), (Slice{.part = {0, 1}}));
  EXPECT_EQ(slice_at(dense(DType::F32, {0, 3}), {0, 0}, {0, 3}), (Slice{.part = {0, 0}}));
}

TEST(SliceAt, ABoxOfStackedExpertsIsExpertsAndRows) {
  EXPECT_EQ(slice_at(stacked({8, 6, 4}), {2, 3, 0}, {5, 3, 4}), (Slice{.part = {2, 7}, .rows = {3, 6}}));
  EXPECT_EQ(slice_at(stacked({8, 6, 4}), {8, 0, 0}, {0, 6, 4}), (Slice{.part = {8, 8}, .rows = {0, 6}}));
}

TEST(SliceAt, WhatLeavesTheTensorOrDividesAnotherAxisIsNone) {
  auto const matrix = dense(DType::BF16, {6, 4});
  EXPECT_FALSE(slice_at(matrix, {4, 0}, {3, 4}));
  EXPECT_FALSE(slice_at(matrix, {7, 0}, {0, 4}));
  EXPECT_FALSE(slice_at(matrix, {0, 1}, {6, 3}));
  EXPECT_FALSE(slice_at(matrix, {0}, {6}));
  EXPECT_FALSE(slice_at(matrix, {}, {}));
  EXPECT_FALSE(slice_at(matrix, {UINT64_MAX, 0}, {3, 4})) << "a sum that wraps around";
  EXPECT_FALSE(slice_at(stacked({8, 6, 4}), {0, 0, 1}, {8, 6, 3}));
  EXPECT_FALSE(slice_at(stacked({8, 6, 4}), {0, 4, 0}, {8, 3, 4}));
}

// Slices of sub-byte types count bytes.
TEST(SliceAt, RowsOfASubByteTypeThatEndWithinAByteCannotBeDivided) {
  auto const whole_bytes = dense(DType::F4, {3, 4});
  EXPECT_EQ(slice_at(whole_bytes, {1, 0}, {2, 4}), (Slice{.part = {2, 6}}));
  for (auto const& shape : {Shape{4, 3}, Shape{2, 1}, Shape{2, 5}}) {
    auto const odd = dense(DType::F4, shape);
    EXPECT_FALSE(slice_at(odd, {1, 0}, {1, shape[1]}));
    EXPECT_TRUE(slice_at(odd, {0, 0}, shape));
  }
}

}  // namespace
}  // namespace rankslice
