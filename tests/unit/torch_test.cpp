#include "rankslice/torch.hpp"

#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>

#include "rankslice/error.hpp"
#include "rankslice/load.hpp"

#include "io/memory.hpp"
#include "support/late_device.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::HasSubstr;

ShardedTensor tensor_of(DType dtype, Shape const& shape) {
  ShardedTensor tensor{
      .parameter = {.fqn = "a.tensor", .hf_dtype = dtype, .dtype = dtype, .shape = shape, .tensors = {0}},
      .local_shape = shape,
      .offsets = Shape(shape.size(), 0),
      .placements = std::vector<Placement>(3),
      .data = allocate_host(byte_size(dtype, shape))};
  for (std::uint64_t i = 0; i < tensor.data.bytes; ++i) tensor.data.span()[i] = static_cast<std::byte>(i);
  return tensor;
}

std::vector<std::int64_t> sizes(Shape const& shape) { return {shape.begin(), shape.end()}; }

struct TorchType {
  DType dtype;
  at::ScalarType expected;
};

// The names on both sides, by hand.
constexpr std::array kTypes{TorchType{DType::BOOL, at::ScalarType::Bool},
                            TorchType{DType::U8, at::ScalarType::Byte},
                            TorchType{DType::I8, at::ScalarType::Char},
                            TorchType{DType::F8_E5M2, at::ScalarType::Float8_e5m2},
                            TorchType{DType::F8_E4M3, at::ScalarType::Float8_e4m3fn},
                            TorchType{DType::F8_E8M0, at::ScalarType::Float8_e8m0fnu},
                            TorchType{DType::F8_E4M3FNUZ, at::ScalarType::Float8_e4m3fnuz},
                            TorchType{DType::F8_E5M2FNUZ, at::ScalarType::Float8_e5m2fnuz},
                            TorchType{DType::I16, at::ScalarType::Short},
                            TorchType{DType::U16, at::ScalarType::UInt16},
                            TorchType{DType::F16, at::ScalarType::Half},
                            TorchType{DType::BF16, at::ScalarType::BFloat16},
                            TorchType{DType::I32, at::ScalarType::Int},
                            TorchType{DType::U32, at::ScalarType::UInt32},
                            TorchType{DType::F32, at::ScalarType::Float},
                            TorchType{DType::C64, at::ScalarType::ComplexFloat},
                            TorchType{DType::F64, at::ScalarType::Double},
                            TorchType{DType::I64, at::ScalarType::Long},
                            TorchType{DType::U64, at::ScalarType::UInt64}};

TEST(AsTensor, HasTypeSizesAndMemoryOfEveryTypeThatTorchKnows) {
  for (auto const& [dtype, expected] : kTypes) {
    for (auto const& shape : {Shape{}, Shape{3}, Shape{2, 3, 4}}) {
      SCOPED_TRACE(testing::Message() << name(dtype) << " " << to_string(shape));
      auto const held = tensor_of(dtype, shape);
      auto const tensor = as_tensor(held);
      EXPECT_EQ(tensor.scalar_type(), expected);
      EXPECT_EQ(tensor.sizes().vec(), sizes(shape));
      EXPECT_EQ(tensor.nbytes(), held.data.bytes);
      EXPECT_EQ(tensor.data_ptr(), held.data.data.get());
      EXPECT_TRUE(tensor.is_contiguous());
      EXPECT_TRUE(tensor.is_cpu());
      EXPECT_FALSE(tensor.requires_grad());
    }
  }
}

TEST(AsTensor, RefusesTheTypesThatTorchDoesNotKnow) {
  for (auto const dtype : {DType::F4, DType::F6_E2M3, DType::F6_E3M2}) {
    try {
      (void)as_tensor(tensor_of(dtype, {8}));
      ADD_FAILURE() << name(dtype);
    } catch (PlanError const& error) {
      EXPECT_EQ(error.tensor, "a.tensor");
      EXPECT_THAT(error.what(), HasSubstr(std::string(name(dtype))));
    }
  }
}

TEST(AsTensor, RefusesMemoryThatThisTorchCannotReach) {
  for (auto const& [kind, why] : {std::pair{"cuda", "link LibTorch::cuda"}, {"late", "does not know it"}}) {
    auto const device = std::make_shared<test::LateDevice>();
    device->says_it_is = kind;
    auto held = tensor_of(DType::BF16, {4});
    held.data = {.data = device->allocate(8), .bytes = 8, .device = device};
    try {
      (void)as_tensor(held);
      ADD_FAILURE() << kind;
    } catch (DeviceError const& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("a.tensor"), HasSubstr(device->name()), HasSubstr(why)));
    }
  }
}

TEST(AsTensor, AScalarHasOneValue) {
  auto held = tensor_of(DType::F32, {});
  *reinterpret_cast<float*>(held.data.data.get()) = 1.5F;
  EXPECT_EQ(as_tensor(held).dim(), 0);
  EXPECT_EQ(as_tensor(held).item<float>(), 1.5F);
}

// Rule 42, ours: a rank without experts.
TEST(AsTensor, AnEmptyTensorKeepsItsOtherAxes) {
  auto const tensor = as_tensor(tensor_of(DType::BF16, {0, 256, 192}));
  EXPECT_EQ(tensor.sizes().vec(), (std::vector<std::int64_t>{0, 256, 192}));
  EXPECT_EQ(tensor.numel(), 0);
}

TEST(AsTensor, WritesThroughInBothDirections) {
  auto const held = tensor_of(DType::I32, {2, 2});
  auto const tensor = as_tensor(held);
  tensor[1][0] = 77;
  auto* const values = reinterpret_cast<std::int32_t*>(held.data.data.get());
  EXPECT_EQ(values[2], 77);
  values[3] = -5;
  EXPECT_EQ(tensor[1][1].item<std::int32_t>(), -5);
  EXPECT_EQ(as_tensor(held)[1][0].item<std::int32_t>(), 77) << "a second one is over the same memory";
}

TEST(AsTensor, OutlivesTheStateAndReleasesTheMemoryAtTheEnd) {
  std::weak_ptr<std::byte> memory;
  at::Tensor view;
  {
    StateDict state;
    state.tensors["a.tensor"] = tensor_of(DType::U8, {4});
    memory = state.tensors["a.tensor"].data.data;
    view = as_tensors(state).at("a.tensor").slice(0, 2);
  }
  ASSERT_FALSE(memory.expired());
  EXPECT_EQ(view[1].item<std::uint8_t>(), 3);
  view.reset();
  EXPECT_TRUE(memory.expired());
}

// ---- against torch's own operations on the bytes of the files ----

at::Tensor file_tensor(test::RawTensor& raw, at::ScalarType type) {
  return at::from_blob(raw.bytes.data(), sizes(raw.shape), at::TensorOptions(type));
}

/// Whether both hold the same bits; at::equal would take NaNs for different.
bool same_bits(at::Tensor const& left, at::Tensor const& right) {
  return left.sizes() == right.sizes() && left.scalar_type() == right.scalar_type() &&
         at::equal(left.contiguous().view(at::kByte), right.contiguous().view(at::kByte));
}

// Rules 35, 9: rows [start, end), then axes 1 and 2 exchanged; rule 55: dt_bias becomes F32.
TEST(AsTensors, OfALoadedSliceAreWhatTorchMakesOfTheFiles) {
  test::TempDir const dir;
  test::write_small_checkpoint(dir.file("hf"));
  auto raw = test::read_raw_tensors(dir.file("hf"));
  auto const source = open_checkpoint(dir.file("hf"));
  auto const mesh = make_mesh(3);
  std::vector<std::pair<std::int64_t, std::int64_t>> const experts{{0, 2}, {2, 3}, {3, 4}};  // 4 over 3
  for (int rank = 0; rank < 3; ++rank) {
    auto const state = load(source, mesh, mesh.coordinate(rank));
    auto const tensors = as_tensors(state);
    ASSERT_EQ(tensors.size(), raw.size());
    for (auto const& [fqn, tensor] : tensors) {
      auto const& key = source->model.key_of(state.tensors.at(fqn).parameter);
      auto const stored = file_tensor(raw.at(key), raw.at(key).dtype == "F32" ? at::kFloat : at::kBFloat16);
      auto expected = stored;
      if (key.find(".mlp.experts.") != std::string::npos) {
        auto const [begin, end] = experts[static_cast<std::size_t>(rank)];
        expected = stored.slice(0, begin, end).transpose(1, 2);
      } else if (key.ends_with("dt_bias")) {
        expected = stored.to(at::kFloat);
      }
      EXPECT_TRUE(same_bits(tensor, expected)) << key << " on rank " << rank;
    }
  }
}

}  // namespace
}  // namespace rankslice
