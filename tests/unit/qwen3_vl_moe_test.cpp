#include "model/qwen3_vl_moe.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "support/model_catalog.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::append_tensor;
using test::make_vl_catalog;
using test::make_vl_config;
using test::map_tensors;
using test::parameter_of;
using test::tensor_named;
using test::tiny_qwen_vl;
using testing::AllOf;
using testing::HasSubstr;

KeyTable const& table() { return qwen3_vl_moe().keys; }

// The FQN of a key; "(experts)" behind it when that is stacked.
std::string fqn_of(std::string_view hf_key, std::string_view prefix) {
  auto const mapping = from_hf(table(), hf_key, prefix);
  EXPECT_FALSE(mapping.split);
  return mapping.fqn + (mapping.stacked != nullptr ? " (experts)" : "");
}

std::string_view prefix_of(std::vector<std::string> const& keys) {
  std::vector<CatalogTensor> tensors;
  for (auto const& key : keys) tensors.push_back({.name = key, .dtype = DType::BF16, .shape = {1}, .extent = {}});
  return find_prefix(table(), tensors);
}

// Spoil the tiny checkpoint (E = 4, H = 12, I = 8, 3 layers), and say how it is refused.
test::Refusal refusal(std::function<void(TensorCatalog&, ModelConfig&)> const& spoil) {
  auto catalog = make_vl_catalog(tiny_qwen_vl());
  auto config = make_vl_config(tiny_qwen_vl());
  spoil(catalog, config);
  return test::refusal_of([&] { (void)map_tensors(qwen3_vl_moe(), catalog, config); });
}

TEST(QwenVlMoe, Rule19_OneKeyWithThePrefixGivesItToAll) {
  EXPECT_EQ(prefix_of({"lm_head.weight", "model.visual.pos_embed.weight"}), "model.");
  EXPECT_EQ(prefix_of({"language_model.norm.weight", "model.lm_head.weight"}), "model.");
  EXPECT_EQ(prefix_of({"language_model.norm.weight", "model.mtp.fc.weight"}), "model.");  // no MTP here (rule 23)
  EXPECT_EQ(prefix_of({"language_model.norm.weight", "lm_head.weight", "mtp.fc.weight"}), "");
  EXPECT_EQ(prefix_of({}), "");
}

TEST(QwenVlMoe, Rule20_ExpertKeysOfBothPrefixFormsLeadToTheStackedParameters) {
  for (std::string const at :
       {"model.language_model.layers.47.mlp.experts.", "language_model.layers.47.mlp.experts."}) {
    EXPECT_EQ(fqn_of(at + "gate_up_proj", "model."),
              "model.language_model.layers.47.mlp.experts.gate_and_up_projs (experts)");
    EXPECT_EQ(fqn_of(at + "down_proj", "model."), "model.language_model.layers.47.mlp.experts.down_projs (experts)");
    EXPECT_EQ(fqn_of(at + "gate_up_proj", ""), "language_model.layers.47.mlp.experts.gate_and_up_projs (experts)");
    EXPECT_EQ(fqn_of(at + "down_proj", ""), "language_model.layers.47.mlp.experts.down_projs (experts)");
  }
}

TEST(QwenVlMoe, Rule20_OtherKeysAreNoExpertKeys) {
  for (std::string const key :
       {"model.layers.0.mlp.experts.gate_up_proj", "model.mtp.layers.0.mlp.experts.gate_up_proj",
        "model.language_model.layers.0.mlp.experts.gate_up_proj.weight",
        "model.language_model.layers.x.mlp.experts.down_proj",
        "model.model.language_model.layers.0.mlp.experts.down_proj", "model.visual.layers.0.mlp.experts.down_proj"}) {
    EXPECT_EQ(fqn_of(key, "model."), key);
  }
  EXPECT_EQ(fqn_of("layers.0.mlp.experts.down_proj", ""), "layers.0.mlp.experts.down_proj");
}

TEST(QwenVlMoe, Rule20_ACheckpointWhoseKeysLackTheLanguageModelHasNoExperts) {
  auto const refused = refusal([](auto& catalog, auto&) {
    for (auto& tensor : catalog.tensors) {
      std::string const from = "model.language_model.";
      if (tensor.name.starts_with(from)) tensor.name.replace(0, from.size(), "model.");
    }
  });
  EXPECT_THAT(refused.message, HasSubstr("(model.language_model.layers.0.mlp.experts.gate_up_proj)"));
}

TEST(QwenVlMoe, Rule22_OtherKeysGetThePrefixOnlyWhenTheyLackIt) {
  for (std::string const key : {"model.language_model.norm.weight", "model.visual.pos_embed.weight", "lm_head.weight",
                                "model.language_model.layers.0.mlp.shared_expert.up_proj.weight",
                                "model.language_model.layers.0.linear_attn.A_log"}) {
    EXPECT_EQ(fqn_of(key, "model."), key);
  }
  EXPECT_EQ(fqn_of("language_model.norm.weight", "model."), "model.language_model.norm.weight");
  EXPECT_EQ(fqn_of("visual.pos_embed.weight", "model."), "model.visual.pos_embed.weight");
  EXPECT_EQ(fqn_of("language_model.norm.weight", ""), "language_model.norm.weight");
  EXPECT_EQ(fqn_of("visual.pos_embed.weight", ""), "visual.pos_embed.weight");
}

TEST(QwenVlMoe, Rule22_NoDtypeIsChanged) {
  for (auto const dtype : {DType::BF16, DType::F16, DType::F32, DType::F64, DType::I8}) {
    EXPECT_EQ(find_dtype_on_load(table(), "model.language_model.layers.0.linear_attn.A_log", dtype), dtype);
    EXPECT_EQ(find_dtype_on_load(table(), "model.language_model.norm.weight", dtype), dtype);
  }
}

TEST(QwenVlMoe, Rule23_ThereAreNoRulesForTheMtpAndTheHead) {
  EXPECT_EQ(fqn_of("mtp.fc.weight", "model."), "model.mtp.fc.weight");
  EXPECT_EQ(fqn_of("mtp.layers.0.mlp.experts.gate_up_proj", "model."), "model.mtp.layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(fqn_of("model.lm_head.weight", "model."), "model.lm_head.weight");
  EXPECT_EQ(to_hf(table(), "model.mtp.fc.weight"), "model.mtp.fc.weight");
}

TEST(QwenVlMoe, Rule23_AnMtpIsKeptUnderItsOwnName) {
  auto catalog = make_vl_catalog(tiny_qwen_vl());
  append_tensor(catalog, "mtp.fc.weight", DType::BF16, {12, 24});
  auto const model = map_tensors(qwen3_vl_moe(), catalog, make_vl_config(tiny_qwen_vl()));
  EXPECT_EQ(parameter_of(model, "mtp.fc.weight").fqn, "model.mtp.fc.weight");
  EXPECT_EQ(model.tensors.back().key, "mtp.fc.weight");
}

TEST(QwenVlMoe, Rule23_UnprefixedAndDoublyPrefixedKeysThatCollideAreRefused) {
  for (auto const& [key, other, fqn] : {
           std::tuple<std::string, std::string, std::string>{
               "language_model.norm.weight", "model.language_model.norm.weight", "model.language_model.norm.weight"},
           {"model.model.language_model.norm.weight", "model.language_model.norm.weight",
            "model.model.language_model.norm.weight"},
           {"model.lm_head.weight", "lm_head.weight", "model.lm_head.weight"},
       }) {
    auto const refused = refusal([&](auto& catalog, auto&) { append_tensor(catalog, key, DType::BF16, {12}); });
    EXPECT_EQ(refused.message, other + " and " + key + " are two names of one parameter, " + fqn);
    EXPECT_EQ(refused.tensor, key);
    EXPECT_EQ(refused.file, "model.safetensors");
  }
  std::string const unprefixed = "language_model.layers.1.mlp.experts.down_proj";
  auto const experts = refusal([&](auto& catalog, auto&) {
    append_tensor(catalog, unprefixed, DType::BF16, {4, 8, 12});
  });
  EXPECT_THAT(experts.message, HasSubstr("model." + unprefixed + " and " + unprefixed + " are two names"));
}

TEST(QwenVlMoe, Rule23_QuantisedWeightsHaveTheirScalesUnderEitherName) {
  std::string const query = "model.language_model.layers.1.self_attn.q_proj";
  std::string const down = "model.language_model.layers.1.mlp.experts.down_proj";
  for (auto const& scales : {query + "_scale_inv", query + ".weight_scale_inv"}) {
    auto catalog = make_vl_catalog(tiny_qwen_vl());
    tensor_named(catalog, query + ".weight").dtype = DType::F8_E4M3;
    append_tensor(catalog, scales, DType::F32, {1, 1});
    tensor_named(catalog, down).dtype = DType::F8_E4M3;
    append_tensor(catalog, down + "_scale_inv", DType::BF16, {4, 1, 1});
    auto const model = map_tensors(qwen3_vl_moe(), catalog, make_vl_config(tiny_qwen_vl()));
    auto const& weight = *std::ranges::find(model.tensors, query + ".weight", &HfTensor::key);
    ASSERT_TRUE(weight.scales);
    EXPECT_EQ(model.tensors[*weight.scales].key, scales);
    EXPECT_EQ(model.parameters[weight.parameter].dtype, DType::BF16);
    auto const& experts = *std::ranges::find(model.tensors, down, &HfTensor::key);
    ASSERT_TRUE(experts.scales);
    EXPECT_EQ(model.tensors[*experts.scales].shape, (Shape{4, 1, 1}));
    EXPECT_EQ(model.parameters[experts.parameter].scale_bytes, 8U);
  }
  auto const both = refusal([&](auto& catalog, auto&) {
    tensor_named(catalog, query + ".weight").dtype = DType::F8_E4M3;
    append_tensor(catalog, query + "_scale_inv", DType::F32, {1, 1});
    append_tensor(catalog, query + ".weight_scale_inv", DType::F32, {1, 1});
  });
  EXPECT_THAT(both.message, HasSubstr("are scales of " + query + ".weight, and so are " + query));
  auto const bare = refusal([&](auto& catalog, auto&) { tensor_named(catalog, down).dtype = DType::F8_E4M3; });
  EXPECT_EQ(bare.message,
            "model.safetensors: " + down + ": Missing FP8 scale: expected " + down + "_scale_inv beside it");
}

TEST(QwenVlMoe, ExpertsInTensorsOfTheirOwnAreRefusedByName) {
  std::string const key = "model.language_model.layers.1.mlp.experts.3.up_proj.weight";
  auto const refused = refusal([&](auto& catalog, auto&) { append_tensor(catalog, key, DType::BF16, {8, 12}); });
  EXPECT_THAT(refused.message, AllOf(HasSubstr(key), HasSubstr("grouped")));
  EXPECT_EQ(refused.tensor, key);
}

TEST(QwenVlMoe, Rules24And46_ExpertNamesAreReplacedWhereverTheyStand) {
  EXPECT_EQ(to_hf(table(), "model.language_model.layers.0.mlp.experts.gate_and_up_projs"),
            "model.language_model.layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(to_hf(table(), "language_model.layers.0.mlp.experts.down_projs"),
            "language_model.layers.0.mlp.experts.down_proj");
  EXPECT_EQ(to_hf(table(), "mtp.layers.0.mlp.experts.down_projs.lora"), "mtp.layers.0.mlp.experts.down_proj.lora");
  EXPECT_EQ(to_hf(table(), "x.experts.down_projs"), "x.experts.down_projs");  // no `.mlp.`
  EXPECT_EQ(to_hf(table(), "lm_head.weight"), "lm_head.weight");
}

TEST(QwenVlMoe, Rules1And2_TheHubsExpertsAreNativeAsTheyAre) {
  auto const model = test::make_vl_model(tiny_qwen_vl());
  auto const& gate_up = parameter_of(model, "model.language_model.layers.2.mlp.experts.gate_up_proj");
  EXPECT_EQ(gate_up.fqn, "model.language_model.layers.2.mlp.experts.gate_and_up_projs");
  EXPECT_EQ(gate_up.shape, (Shape{4, 12, 16}));  // [E, H, 2I]
  EXPECT_EQ(gate_up.layout, Layout::same);
  EXPECT_TRUE(gate_up.stacked_experts);
  auto const& down = parameter_of(model, "model.language_model.layers.2.mlp.experts.down_proj");
  EXPECT_EQ(down.shape, (Shape{4, 8, 12}));  // [E, I, H]
  EXPECT_EQ(down.layout, Layout::same);
}

TEST(QwenVlMoe, Rule5a_TransformersExpertsAreSwapped) {
  auto shape = tiny_qwen_vl();
  shape.layout = ExpertLayout::transformers;
  auto const model = test::make_vl_model(shape);
  auto const& gate_up = parameter_of(model, "model.language_model.layers.2.mlp.experts.gate_up_proj");
  EXPECT_EQ(gate_up.shape, (Shape{4, 12, 16}));
  EXPECT_EQ(gate_up.layout, Layout::swapped);
  auto const& tensor = test::tensor_of(model, "model.language_model.layers.2.mlp.experts.gate_up_proj");
  EXPECT_EQ(tensor.shape, (Shape{4, 16, 12}));
  EXPECT_EQ(tensor.experts, (Range{0, 4}));
  EXPECT_EQ(tensor.columns, (Range{0, 16}));
}

TEST(QwenVlMoe, Rule42_SparseLayersAreDemandedAsTransformersMakesThem) {
  auto const drop = [](TensorCatalog& catalog, std::string_view layer) {
    std::erase_if(catalog.tensors, [&](CatalogTensor const& tensor) {
      return tensor.name.starts_with(layer) && tensor.name.find(".experts.") != std::string::npos;
    });
  };
  auto const every_second = refusal([&](auto& catalog, auto& config) {
    config.sparse_step = 2;  // layer 1 of 0, 1, 2
    drop(catalog, "model.language_model.layers.0.");
    drop(catalog, "model.language_model.layers.2.");
  });
  EXPECT_EQ(every_second.message, "accepted");
  auto const second_missing = refusal([&](auto& catalog, auto& config) {
    config.sparse_step = 2;
    drop(catalog, "model.language_model.layers.1.");
  });
  EXPECT_EQ(second_missing.message,
            "model.language_model.layers.1.mlp.experts.gate_up_proj: missing from the checkpoint: config.json has "
            "num_hidden_layers = 3");
}

}  // namespace
}  // namespace rankslice
