#include "model/qwen3_moe.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "rankslice/hf_keys.hpp"

#include "model/converted_model.hpp"
#include "model/fresh_model.hpp"
#include "support/model_catalog.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::append_tensor;
using test::map_tensors;
using test::parameter_of;
using test::remove_tensor;
using test::tensor_of;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

KeyTable const& table() { return qwen3_moe().keys; }

std::string fqn_of(std::string_view hf_key, std::string_view prefix) {
  auto const mapping = from_hf(table(), hf_key, prefix);
  EXPECT_EQ(mapping.stacked, nullptr);
  return mapping.fqn;
}

// E = 2, H = 12, I = 4; layers 0 and 2 have experts, layer 1 is dense.
TensorCatalog make_catalog(ExpertForm form, std::string const& prefix = "model.") {
  TensorCatalog catalog{.files = {{.name = "model.safetensors", .path = "", .size = 0}}, .tensors = {}};
  append_tensor(catalog, "lm_head.weight", DType::BF16, {6, 12});
  append_tensor(catalog, prefix + "embed_tokens.weight", DType::BF16, {6, 12});
  for (auto const* layer : {"layers.0.", "layers.2."}) {
    auto const experts = fmt::format("{}{}mlp.experts.", prefix, layer);
    append_tensor(catalog, fmt::format("{}{}mlp.gate.weight", prefix, layer), DType::BF16, {2, 12});
    if (form == ExpertForm::grouped) {
      append_tensor(catalog, experts + "gate_up_proj", DType::BF16, {2, 8, 12});
      append_tensor(catalog, experts + "down_proj", DType::BF16, {2, 12, 4});
      continue;
    }
    for (auto const* expert : {"0.", "1."}) {
      append_tensor(catalog, experts + expert + "down_proj.weight", DType::BF16, {12, 4});
      append_tensor(catalog, experts + expert + "gate_proj.weight", DType::BF16, {4, 12});
      append_tensor(catalog, experts + expert + "up_proj.weight", DType::BF16, {4, 12});
    }
  }
  append_tensor(catalog, prefix + "layers.1.mlp.gate_proj.weight", DType::BF16, {20, 12});
  append_tensor(catalog, prefix + "layers.1.mlp.down_proj.weight", DType::BF16, {12, 20});
  return catalog;
}

ModelConfig make_config() {
  ModelConfig config;
  config.model_type = "qwen3_moe";
  config.experts = 2;
  config.hidden = 12;
  config.intermediate = 4;
  config.layers = 3;
  config.dense_layers = {1};
  return config;
}

test::Refusal refusal(std::function<void(TensorCatalog&, ModelConfig&)> const& spoil) {
  auto catalog = make_catalog(ExpertForm::split);
  auto config = make_config();
  spoil(catalog, config);
  return test::refusal_of([&] { (void)map_tensors(qwen3_moe(), catalog, config); });
}

TEST(Qwen3Moe, Rules1And40_EachExpertsMatricesFillTheTwoStackedParameters) {
  auto const model = map_tensors(qwen3_moe(), make_catalog(ExpertForm::split), make_config());
  std::string const experts = "model.layers.2.mlp.experts.";
  auto const& gate_up = parameter_of(model, experts + "1.up_proj.weight");
  EXPECT_EQ(gate_up.fqn, experts + "gate_and_up_projs");
  EXPECT_EQ(gate_up.shape, (Shape{2, 12, 8}));  // [E, H, 2I]
  EXPECT_EQ(gate_up.layout, Layout::swapped);
  EXPECT_TRUE(gate_up.stacked_experts);
  auto const& up = tensor_of(model, experts + "1.up_proj.weight");
  EXPECT_EQ(up.experts, (Range{1, 2}));
  EXPECT_EQ(up.columns, (Range{4, 8}));  // up follows gate
  auto const& down = parameter_of(model, experts + "1.down_proj.weight");
  EXPECT_EQ(down.fqn, experts + "down_projs");
  EXPECT_EQ(down.shape, (Shape{2, 4, 12}));  // [E, I, H]
}

TEST(Qwen3Moe, Rule5a_ExpertsThatTransformersHasGroupedAreTheSameParameters) {
  auto const split = map_tensors(qwen3_moe(), make_catalog(ExpertForm::split), make_config());
  auto const grouped = map_tensors(qwen3_moe(), make_catalog(ExpertForm::grouped), make_config());
  ASSERT_EQ(grouped.parameters.size(), split.parameters.size());
  for (auto const* name : {"gate_up_proj", "down_proj"}) {
    auto const& found = parameter_of(grouped, std::string("model.layers.0.mlp.experts.") + name);
    auto const of_one = name == std::string("down_proj") ? "0.down_proj.weight" : "0.gate_proj.weight";
    auto const& expected = parameter_of(split, std::string("model.layers.0.mlp.experts.") + of_one);
    EXPECT_EQ(found.fqn, expected.fqn);
    EXPECT_EQ(found.shape, expected.shape);
    EXPECT_EQ(found.layout, expected.layout);
  }
}

TEST(Qwen3Moe, Rule32_KeysWithoutThePrefixStayWithoutIt) {
  auto const model = map_tensors(qwen3_moe(), make_catalog(ExpertForm::split, ""), make_config());
  EXPECT_EQ(parameter_of(model, "layers.0.mlp.experts.0.gate_proj.weight").fqn,
            "layers.0.mlp.experts.gate_and_up_projs");
  EXPECT_EQ(parameter_of(model, "embed_tokens.weight").fqn, "embed_tokens.weight");
  EXPECT_EQ(parameter_of(model, "lm_head.weight").fqn, "lm_head.weight");
}

TEST(Qwen3Moe, Rule38_AllOtherKeysKeepTheirNamesInBothDirections) {
  for (std::string const key :
       {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.gate.weight",
        "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight", "model.layers.0.linear_attn.A_log",
        "model.layers.0.mlp.shared_expert.up_proj.weight"}) {
    EXPECT_EQ(fqn_of(key, "model."), key);
    EXPECT_EQ(to_hf(table(), key), key);
  }
  EXPECT_EQ(fqn_of("model.lm_head.weight", "model."), "lm_head.weight");
}

TEST(Qwen3Moe, NoKeyHasALanguageModelInIt) {
  auto const* const key = "model.language_model.layers.0.mlp.experts.0.up_proj.weight";
  EXPECT_EQ(fqn_of(key, "model."), key);
}

TEST(Qwen3Moe, Rule42_ALayerWithoutExpertsIsMissedUnlessConfigJsonCallsItDense) {
  auto const refused = refusal([](auto&, auto& config) { config.dense_layers = {}; });
  EXPECT_EQ(refused.tensor, "model.layers.1.mlp.experts.0.gate_proj.weight");
  EXPECT_THAT(refused.message, HasSubstr("config.json has num_hidden_layers = 3"));
}

TEST(Qwen3Moe, Rule42_OnlyEveryDecoderSparseStepthLayerNeedsExperts) {
  auto catalog = make_catalog(ExpertForm::split);
  for (auto& tensor : catalog.tensors) {  // layers 1 and 3 instead of 0 and 2
    auto const at = tensor.name.find("layers.0.");
    if (at != std::string::npos) tensor.name.replace(at, 9, "layers.3.");
    auto const second = tensor.name.find("layers.2.");
    if (second != std::string::npos) tensor.name.replace(second, 9, "layers.1.");
  }
  auto config = make_config();
  config.layers = 4;
  config.dense_layers = {};
  config.sparse_step = 2;
  EXPECT_EQ(parameter_of(map_tensors(qwen3_moe(), catalog, config), "model.layers.3.mlp.experts.0.up_proj.weight").fqn,
            "model.layers.3.mlp.experts.gate_and_up_projs");
}

TEST(Qwen3Moe, Rules40And42_AMissingMatrixIsNamed) {
  std::string const key = "model.layers.2.mlp.experts.1.up_proj.weight";
  auto const refused = refusal([&](auto& catalog, auto&) { remove_tensor(catalog, key); });
  EXPECT_EQ(refused.tensor, key);
  EXPECT_THAT(refused.message, HasSubstr("Missing up_proj weight for layer 2, expert 1"));
}

TEST(Qwen3Moe, Rule26_GroupedAndSplitExpertsTogetherAreRefused) {
  auto const refused = refusal([](auto& catalog, auto&) {
    append_tensor(catalog, "model.layers.4.mlp.experts.down_proj", DType::BF16, {2, 12, 4});
  });
  EXPECT_THAT(refused.message, AllOf(HasSubstr("both split and grouped decoder expert keys"),
                                     HasSubstr("'model.layers.4.mlp.experts.down_proj'")));
}

TEST(Qwen3Moe, Rule50_DequantisedExpertsAreWrittenInTensorsOfTheirOwnAsReleased) {
  auto quantised = map_tensors(qwen3_moe(), make_catalog(ExpertForm::split), make_config());
  for (std::uint32_t i = 0; i < quantised.tensors.size(); ++i) {
    auto& tensor = quantised.tensors[i];
    auto& parameter = quantised.parameters[tensor.parameter];
    if (!parameter.stacked_experts) continue;
    tensor.dtype = parameter.hf_dtype = DType::F8_E4M3;
    tensor.scales = i;
  }
  auto const exported = make_converted_model(qwen3_moe(), quantised, Fp32HeldDtype::of_source);
  ASSERT_TRUE(exported);
  ASSERT_EQ(exported->tensors.size(), quantised.tensors.size());
  for (std::size_t i = 0; i < exported->tensors.size(); ++i) {
    EXPECT_EQ(exported->tensors[i].key, quantised.tensors[i].key);
    EXPECT_EQ(exported->tensors[i].dtype, DType::BF16);
  }
}

TEST(Qwen3Moe, Rule45_WithoutASourceEachExpertIsWrittenInTensorsOfItsOwnAsReleased) {
  std::vector<NativeTensor> const natives{{"model.layers.0.mlp.experts.gate_and_up_projs", DType::BF16, {1, 6, 8}},
                                          {"model.layers.0.mlp.experts.down_projs", DType::BF16, {1, 4, 6}}};
  std::vector<std::string> keys;
  for (auto const& tensor : make_fresh_model(qwen3_moe(), natives).tensors) {
    keys.push_back(tensor.key + " " + to_string(tensor.shape));
  }
  std::string const at = "model.layers.0.mlp.experts.";
  EXPECT_THAT(keys, ElementsAre(at + "0.gate_proj.weight [4, 6]", at + "0.up_proj.weight [4, 6]",
                                at + "0.down_proj.weight [6, 4]"));
  EXPECT_EQ(hf_keys("qwen3_moe", natives).front(), at + "0.gate_proj.weight");
  auto const grouped = make_fresh_model(qwen3_moe(), natives, {.decoder_experts = ExpertForm::grouped});
  EXPECT_EQ(tensor_of(grouped, at + "gate_up_proj").shape, (Shape{1, 8, 6}));
}

}  // namespace
}  // namespace rankslice
