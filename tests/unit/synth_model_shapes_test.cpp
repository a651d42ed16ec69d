#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "support/model_catalog.hpp"
#include "synth/hub_files.hpp"
#include "synth/model_shapes.hpp"
#include "synth/presets.hpp"

// The sizes of real models and their published totals: adapters.md, D.

namespace rankslice {
namespace {

struct RealModel {
  char const* name;
  Qwen35MoeDims dims;
  std::size_t tensors;  // with grouped MTP experts
  std::size_t f32;      // A_log and linear_attn.norm.weight of every linear-attention layer
  std::uint64_t bytes;
};

Qwen35MoeDims dims(std::uint64_t hidden, std::uint64_t intermediate, std::uint64_t experts, std::uint64_t layers,
                   std::uint64_t shared, std::uint64_t heads, std::uint64_t value_heads) {
  return {.hidden = hidden,
          .intermediate = intermediate,
          .shared_intermediate = shared,
          .experts = experts,
          .experts_per_token = 8,
          .layers = layers,
          .vocab = 248320,
          .heads = heads,
          .kv_heads = 2,
          .head_dim = 256,
          .linear_key_heads = 16,
          .linear_value_heads = value_heads,
          .vision = {}};
}

// Checkpoints with split MTP experts have 3·E tensors where grouped ones have 2.
constexpr std::size_t grouped(std::size_t split_tensors, std::size_t experts) {
  return split_tensors - 3 * experts + 2;
}

std::vector<RealModel> real_models() {
  return {{"Qwen3.6-35B-A3B", dims(2048, 512, 256, 40, 512, 16, 32), 1045, 60, 71'903'655'008},
          {"Qwen3.5-122B-A10B", dims(3072, 1024, 256, 48, 1024, 32, 64), grouped(1949, 256), 72, 250'173'007'840},
          {"Qwen3.5-397B-A17B", dims(4096, 1024, 512, 60, 1024, 32, 64), grouped(2924, 512), 90, 806'795'875'168}};
}

Shape shape_of(std::vector<SynthTensor> const& tensors, std::string const& name) {
  auto const found = std::ranges::find(tensors, name, &SynthTensor::name);
  return found == tensors.end() ? Shape{} : found->shape;
}

TEST(ModelShapes, HaveTheTensorsAndBytesOfTheRealModels) {
  for (auto const& model : real_models()) {
    auto const tensors = qwen3_5_moe_tensors(model.dims);
    EXPECT_EQ(tensors.size(), model.tensors) << model.name;
    EXPECT_EQ(tensor_bytes(tensors), model.bytes) << model.name;
    auto const f32 = std::ranges::count(tensors, DType::F32, &SynthTensor::dtype);
    EXPECT_EQ(static_cast<std::size_t>(f32), model.f32) << model.name;
  }
}

TEST(ModelShapes, NameEveryTensorOnce) {
  auto const tensors = qwen3_5_moe_tensors(real_models().front().dims);
  std::set<std::string> names;
  for (auto const& tensor : tensors) names.insert(tensor.name);
  EXPECT_EQ(names.size(), tensors.size());
}

// Rules 3 and 5: [E,2I,H] and [E,H,I], in the decoder and in the MTP block.
TEST(ModelShapes, OfGroupedExpertsHaveTheExpertsFirst) {
  auto const tensors = qwen3_5_moe_tensors(real_models().front().dims);
  for (std::string const prefix :
       {"model.language_model.layers.0.", "model.language_model.layers.39.", "mtp.layers.0."}) {
    EXPECT_EQ(shape_of(tensors, prefix + "mlp.experts.gate_up_proj"), (Shape{256, 1024, 2048})) << prefix;
    EXPECT_EQ(shape_of(tensors, prefix + "mlp.experts.down_proj"), (Shape{256, 2048, 512})) << prefix;
  }
}

// The catalog that the planner is tested with was written from the same rules by another hand.
TEST(ModelShapes, AreThoseOfTheTestCatalog) {
  std::set<std::tuple<std::string, DType, Shape>> expected, made;
  for (auto const& tensor : test::make_catalog({}).tensors) expected.emplace(tensor.name, tensor.dtype, tensor.shape);
  for (auto const& tensor : qwen3_5_moe_tensors(real_models().front().dims)) {
    made.emplace(tensor.name, tensor.dtype, tensor.shape);
  }
  EXPECT_EQ(made, expected);
}

TEST(ModelShapes, OfAttentionAlternateThreeToOne) {
  auto const tensors = qwen3_5_moe_tensors(real_models().front().dims);
  for (std::uint64_t layer = 0; layer < 40; ++layer) {
    auto const prefix = "model.language_model.layers." + std::to_string(layer);
    auto const full = layer % 4 == 3;
    EXPECT_EQ(shape_of(tensors, prefix + ".self_attn.q_proj.weight"), full ? (Shape{8192, 2048}) : Shape{}) << layer;
    EXPECT_EQ(shape_of(tensors, prefix + ".linear_attn.conv1d.weight"), full ? Shape{} : (Shape{8192, 1, 4})) << layer;
  }
}

TEST(Presets, AreOfTheirSize) {
  EXPECT_LE(tensor_bytes(qwen3_5_moe_tensors(find_preset("tiny").dims)), 64'000'000U);
  auto const small = tensor_bytes(qwen3_5_moe_tensors(find_preset("small").dims));
  EXPECT_GE(small, 2'000'000'000U);
  EXPECT_LE(small, 2'100'000'000U);
}

TEST(Presets, TellATransposedExpertByItsShape) {
  for (auto const& preset : presets()) {
    EXPECT_NE(2 * preset.dims.intermediate, preset.dims.hidden) << preset.name;
    EXPECT_NE(preset.dims.intermediate, preset.dims.hidden) << preset.name;
  }
}

}  // namespace
}  // namespace rankslice
