#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "support/model_catalog.hpp"
#include "synth/model_shapes.hpp"
#include "synth/presets.hpp"

namespace rankslice {
namespace {

/// A model whose sizes can all be told apart: H 20, I 21, E 3.
SynthModel odd_model(SynthFamily family, SynthLayout layout = SynthLayout::hub) {
  ModelDims dims{.hidden = 20,
                 .intermediate = 21,
                 .experts = 3,
                 .experts_per_token = 2,
                 .layers = 4,
                 .vocab = 23,
                 .heads = 5,
                 .kv_heads = 1,
                 .head_dim = 8,
                 .vision = {.depth = 3, .hidden = 4, .intermediate = 6, .heads = 2, .positions = 9, .merge = 3}};
  if (family == SynthFamily::qwen3_5_moe || family == SynthFamily::qwen3_next) {
    dims.shared_intermediate = 22;
    dims.linear_key_heads = 2;
    dims.linear_value_heads = 4;
    dims.linear_head_dim = 7;
  }
  return {.family = family, .dims = dims, .layout = layout};
}

constexpr auto kVl = SynthFamily::qwen3_vl_moe;
constexpr auto k35 = SynthFamily::qwen3_5_moe;
constexpr auto kMoe = SynthFamily::qwen3_moe;
constexpr auto kNext = SynthFamily::qwen3_next;

Shape shape_of(std::vector<SafetensorsHeader::Tensor> const& tensors, std::string const& name) {
  auto const found = std::ranges::find(tensors, name, &SafetensorsHeader::Tensor::name);
  return found == tensors.end() ? Shape{} : found->shape;
}

using NamedShapes = std::map<std::string, Shape>;

/// Names below a prefix and their shapes.
NamedShapes below(std::string const& prefix, std::vector<SafetensorsHeader::Tensor> const& tensors) {
  NamedShapes shapes;
  for (auto const& tensor : tensors) {
    if (tensor.name.starts_with(prefix)) shapes[tensor.name.substr(prefix.size())] = tensor.shape;
  }
  return shapes;
}

TEST(ModelShapes, NameEveryTensorOnce) {
  for (auto const& preset : presets()) {
    auto const tensors = model_tensors(preset.model);
    std::set<std::string> names;
    for (auto const& tensor : tensors) names.insert(tensor.name);
    EXPECT_EQ(names.size(), tensors.size()) << preset.name;
  }
}

// Rule 2: [E,H,2I] and [E,I,H].
TEST(ModelShapes, OfExpertsOfQwen3VlOnTheHubHaveInputsAsRows) {
  auto const experts = below("model.language_model.layers.3.mlp.", model_tensors(odd_model(kVl)));
  EXPECT_EQ(experts,
            (NamedShapes{
                {"experts.gate_up_proj", {3, 20, 42}}, {"experts.down_proj", {3, 21, 20}}, {"gate.weight", {3, 20}}}));
}

// Rule 5a: [E,2I,H] and [E,H,I].
TEST(ModelShapes, OfExpertsOfQwen3VlFromTransformersHaveOutputsAsRows) {
  auto const tensors = model_tensors(odd_model(kVl, SynthLayout::transformers));
  EXPECT_EQ(shape_of(tensors, "model.language_model.layers.3.mlp.experts.gate_up_proj"), (Shape{3, 42, 20}));
  EXPECT_EQ(shape_of(tensors, "model.language_model.layers.3.mlp.experts.down_proj"), (Shape{3, 20, 21}));
}

// Rules 3 and 5: [E,2I,H] and [E,H,I], in the decoder and in the MTP block.
TEST(ModelShapes, OfGroupedExpertsOfQwen35HaveOutputsAsRows) {
  auto const tensors = model_tensors(odd_model(k35));
  for (std::string const layer :
       {"model.language_model.layers.0.", "model.language_model.layers.3.", "mtp.layers.0."}) {
    EXPECT_EQ(shape_of(tensors, layer + "mlp.experts.gate_up_proj"), (Shape{3, 42, 20})) << layer;
    EXPECT_EQ(shape_of(tensors, layer + "mlp.experts.down_proj"), (Shape{3, 20, 21})) << layer;
  }
}

NamedShapes split_experts() {
  NamedShapes shapes;
  for (std::string const x : {"0", "1", "2"}) {
    shapes[x + ".gate_proj.weight"] = shapes[x + ".up_proj.weight"] = {21, 20};
    shapes[x + ".down_proj.weight"] = {20, 21};
  }
  return shapes;
}

// Rule 5: `mtp.layers.0.mlp.experts.X.{gate,up,down}_proj.weight`, BF16; the decoder's stay grouped.
TEST(ModelShapes, OfSplitMtpExpertsAreThreeForEachExpert) {
  auto model = odd_model(k35);
  auto const grouped = model_tensors(model);
  model.mtp_experts = ExpertForm::split;
  auto const split = model_tensors(model);
  EXPECT_EQ(below("mtp.layers.0.mlp.experts.", split), split_experts());
  EXPECT_EQ(split.size(), grouped.size() - 2 + 9);
  auto const decoder = "model.language_model.";
  EXPECT_EQ(below(decoder, split), below(decoder, grouped));
  for (auto const& tensor : split) {
    if (!tensor.name.starts_with("mtp.")) continue;
    EXPECT_EQ(tensor.dtype, DType::BF16) << tensor.name;
  }
}

// Rule 5a: per expert and unquantised, everything BF16, and transformers has no MTP block.
TEST(ModelShapes, OfQwen35FromTransformersAreSplitInTheDecoder) {
  auto const tensors = model_tensors(odd_model(k35, SynthLayout::transformers));
  for (std::string const layer : {"0", "1", "2", "3"}) {
    EXPECT_EQ(below("model.language_model.layers." + layer + ".mlp.experts.", tensors), split_experts());
  }
  EXPECT_TRUE(below("mtp.", tensors).empty());
  for (auto const& tensor : tensors) EXPECT_EQ(tensor.dtype, DType::BF16) << tensor.name;
}

// Rule 5a: a model that was loaded from grouped files is written grouped.
TEST(ModelShapes, OfQwen35FromTransformersAreGroupedOnRequest) {
  auto model = odd_model(k35, SynthLayout::transformers);
  model.decoder_experts = ExpertForm::grouped;
  auto const tensors = model_tensors(model);
  EXPECT_EQ(below("model.language_model.layers.0.mlp.experts.", tensors),
            (NamedShapes{{"gate_up_proj", {3, 42, 20}}, {"down_proj", {3, 20, 21}}}));
}

// Rule 5a: as the decoder's of transformers, and the MTP block stays.
TEST(ModelShapes, OfQwen35AreSplitInTheDecoderOnRequest) {
  auto model = odd_model(k35);
  model.decoder_experts = ExpertForm::split;
  auto const tensors = model_tensors(model);
  for (std::string const layer : {"0", "1", "2", "3"}) {
    EXPECT_EQ(below("model.language_model.layers." + layer + ".mlp.experts.", tensors), split_experts());
  }
  EXPECT_EQ(below("mtp.layers.0.mlp.experts.", tensors),
            (NamedShapes{{"gate_up_proj", {3, 42, 20}}, {"down_proj", {3, 20, 21}}}));
  for (auto const& tensor : tensors) EXPECT_NE(tensor.dtype, DType::F8_E4M3) << tensor.name;
}

// Rule 43: without vision and without `language_model.`
TEST(ModelShapes, OfTextModelsAreTheDecodersUnderShorterNames) {
  auto model = odd_model(k35);
  auto const whole = model_tensors(model);
  model.text_only = true;
  auto const text = model_tensors(model);
  EXPECT_EQ(below("model.", text), below("model.language_model.", whole));
  EXPECT_EQ(below("mtp.", text), below("mtp.", whole));
  EXPECT_TRUE(below("model.visual.", text).empty());
}

TEST(ModelShapes, OfQwen3MoeAreThoseOfQwen3VlWithoutVisionAndSplit) {
  auto const tensors = model_tensors(odd_model(kMoe));
  auto expected = below("model.language_model.", model_tensors(odd_model(kVl)));
  std::erase_if(expected, [](auto const& named) { return named.first.find(".experts.") != std::string::npos; });
  for (std::string const layer : {"0", "1", "2", "3"}) {
    for (auto const& [name, shape] : split_experts()) expected["layers." + layer + ".mlp.experts." + name] = shape;
  }
  EXPECT_EQ(below("model.", tensors), expected);
  EXPECT_EQ(shape_of(tensors, "lm_head.weight"), (Shape{23, 20}));
  EXPECT_EQ(tensors.size(), expected.size() + 1);
  for (auto const& tensor : tensors) EXPECT_EQ(tensor.dtype, DType::BF16) << tensor.name;
}

// The delta net of Qwen3-Next has two input matrices instead of four: q, k, v and z in one, b and a in the other.
TEST(ModelShapes, OfQwen3NextAreThoseOfQwen35WithoutVisionSplitAndWithJointInputs) {
  auto model = odd_model(k35);
  model.text_only = true;
  model.decoder_experts = model.mtp_experts = ExpertForm::split;
  auto expected = below("", model_tensors(model));
  for (std::string const layer : {"0", "1", "2"}) {
    auto const net = "model.layers." + layer + ".linear_attn.";
    for (auto const* part : {"qkv", "z", "b", "a"}) expected.erase(net + "in_proj_" + part + ".weight");
    expected[net + "in_proj_qkvz.weight"] = {2 * 14 + 2 * 28, 20};
    expected[net + "in_proj_ba.weight"] = {8, 20};
  }
  auto const tensors = model_tensors(odd_model(kNext));
  EXPECT_EQ(below("", tensors), expected);
  for (auto const& tensor : tensors) EXPECT_EQ(tensor.dtype, DType::BF16) << tensor.name;
}

TEST(ModelShapes, OfQwen3VlAreWithoutWhatOnlyQwen35Has) {
  for (auto const& tensor : model_tensors(odd_model(kVl))) {
    for (auto const* part : {"mtp.", "linear_attn", "shared_expert"}) {
      EXPECT_EQ(tensor.name.find(part), std::string::npos) << tensor.name;
    }
    EXPECT_EQ(tensor.dtype, DType::BF16) << tensor.name;
  }
}

// Queries of Qwen3.5 are twice as many rows: the other half is the output gate.
TEST(ModelShapes, OfFullAttentionDifferInTheGate) {
  NamedShapes attention{{"q_proj.weight", {40, 20}}, {"k_proj.weight", {8, 20}}, {"v_proj.weight", {8, 20}},
                        {"o_proj.weight", {20, 40}}, {"q_norm.weight", {8}},     {"k_norm.weight", {8}}};
  for (std::string const layer : {"0", "1", "2", "3"}) {
    EXPECT_EQ(below("model.language_model.layers." + layer + ".self_attn.", model_tensors(odd_model(kVl))), attention);
  }
  attention["q_proj.weight"] = {80, 20};
  for (std::string const layer : {"model.language_model.layers.3", "mtp.layers.0"}) {
    EXPECT_EQ(below(layer + ".self_attn.", model_tensors(odd_model(k35))), attention);
  }
}

TEST(ModelShapes, OfVisionTowersDifferInTheDeepstackMergers) {
  auto vl = below("model.visual.", model_tensors(odd_model(kVl)));
  for (std::string const i : {"0", "1", "2"}) {
    auto const merger = "deepstack_merger_list." + i + ".";
    EXPECT_EQ(vl[merger + "norm.weight"], (Shape{36}));
    EXPECT_EQ(vl[merger + "norm.bias"], (Shape{36}));
    EXPECT_EQ(vl[merger + "linear_fc1.weight"], (Shape{36, 36}));
    EXPECT_EQ(vl[merger + "linear_fc1.bias"], (Shape{36}));
    EXPECT_EQ(vl[merger + "linear_fc2.weight"], (Shape{20, 36}));
    EXPECT_EQ(vl[merger + "linear_fc2.bias"], (Shape{20}));
  }
  std::erase_if(vl, [](auto const& named) { return named.first.starts_with("deepstack_merger_list."); });
  EXPECT_EQ(vl, below("model.visual.", model_tensors(odd_model(k35))));
  EXPECT_EQ(vl["merger.norm.weight"], (Shape{4}));
}

// The catalog that the planner is tested with was written from the same rules by another hand.
TEST(ModelShapes, AreThoseOfTheTestCatalog) {
  std::set<std::tuple<std::string, DType, Shape>> expected, made;
  for (auto const& tensor : test::make_catalog({}).tensors) expected.emplace(tensor.name, tensor.dtype, tensor.shape);
  ModelDims const dims{.hidden = 2048,
                       .intermediate = 512,
                       .shared_intermediate = 512,
                       .experts = 256,
                       .experts_per_token = 8,
                       .layers = 40,
                       .vocab = 248320,
                       .heads = 16,
                       .kv_heads = 2,
                       .head_dim = 256,
                       .linear_key_heads = 16,
                       .linear_value_heads = 32,
                       .vision = {}};
  for (auto const& tensor : model_tensors({.dims = dims})) made.emplace(tensor.name, tensor.dtype, tensor.shape);
  EXPECT_EQ(made, expected);
}

TEST(ModelShapes, OfQwen35AttentionAlternateThreeToOne) {
  auto model = odd_model(k35);
  model.dims.layers = 40;
  auto const tensors = model_tensors(model);
  for (std::uint64_t layer = 0; layer < 40; ++layer) {
    auto const prefix = "model.language_model.layers." + std::to_string(layer);
    auto const full = layer % 4 == 3;
    EXPECT_EQ(shape_of(tensors, prefix + ".self_attn.q_proj.weight"), full ? (Shape{80, 20}) : Shape{}) << layer;
    EXPECT_EQ(shape_of(tensors, prefix + ".linear_attn.conv1d.weight"), full ? Shape{} : (Shape{56, 1, 4})) << layer;
  }
}

}  // namespace
}  // namespace rankslice
