#include "model/qwen3_next.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "model/fresh_model.hpp"
#include "support/model_catalog.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::append_tensor;
using test::map_tensors;
using test::parameter_of;
using test::remove_tensor;
using testing::ElementsAre;
using testing::HasSubstr;

KeyTable const& table() { return qwen3_next().keys; }

struct Names {
  std::string_view hf;
  std::string_view fqn;
};

// One of every kind of key of the released 80B-A3B that is no expert's.
constexpr Names kDense[] = {
    {"lm_head.weight", "lm_head.weight"},
    {"model.embed_tokens.weight", "model.embed_tokens.weight"},
    {"model.norm.weight", "model.norm.weight"},
    {"model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"},
    {"model.layers.47.post_attention_layernorm.weight", "model.layers.47.post_attention_layernorm.weight"},
    {"model.layers.3.self_attn.q_proj.weight", "model.layers.3.self_attn.q_proj.weight"},
    {"model.layers.3.self_attn.k_norm.weight", "model.layers.3.self_attn.k_norm.weight"},
    {"model.layers.0.linear_attn.in_proj_qkvz.weight", "model.layers.0.linear_attn.in_proj_qkvz.weight"},
    {"model.layers.0.linear_attn.in_proj_ba.weight", "model.layers.0.linear_attn.in_proj_ba.weight"},
    {"model.layers.0.linear_attn.conv1d.weight", "model.layers.0.linear_attn.conv1d.weight"},
    {"model.layers.0.linear_attn.norm.weight", "model.layers.0.linear_attn.norm.weight"},
    {"model.layers.0.linear_attn.out_proj.weight", "model.layers.0.linear_attn.out_proj.weight"},
    // rules 53, 54
    {"model.layers.0.linear_attn.A_log", "model.layers.0.linear_attn._fp32_params.A_log"},
    {"model.layers.46.linear_attn.dt_bias", "model.layers.46.linear_attn._fp32_params.dt_bias"},
    // rules 38, 47
    {"model.layers.0.mlp.gate.weight", "model.layers.0.mlp.gate.weight"},
    {"model.layers.0.mlp.shared_expert.gate_proj.weight", "model.layers.0.mlp.shared_experts.gate_proj.weight"},
    {"model.layers.0.mlp.shared_expert.down_proj.weight", "model.layers.0.mlp.shared_experts.down_proj.weight"},
    {"model.layers.0.mlp.shared_expert_gate.weight", "model.layers.0.mlp.shared_expert_gate.weight"},
    // rule 34
    {"mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
    {"mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
    {"mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"},
    {"mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"},
    {"mtp.layers.0.self_attn.q_proj.weight", "mtp.layers.0.self_attn.q_proj.weight"},
    {"mtp.layers.0.mlp.shared_expert.up_proj.weight", "mtp.layers.0.mlp.shared_experts.up_proj.weight"},
};

// E = 2, H = 12, I = 4, of one layer and the MTP.
TensorCatalog make_catalog(ExpertForm form) {
  TensorCatalog catalog{.files = {{.name = "model.safetensors", .path = "", .size = 0}}, .tensors = {}};
  for (std::string const at : {"model.layers.0.mlp.experts.", "mtp.layers.0.mlp.experts."}) {
    if (form == ExpertForm::grouped) {
      append_tensor(catalog, at + "gate_up_proj", DType::BF16, {2, 8, 12});
      append_tensor(catalog, at + "down_proj", DType::BF16, {2, 12, 4});
      continue;
    }
    for (auto const* expert : {"0.", "1."}) {
      append_tensor(catalog, at + expert + "down_proj.weight", DType::BF16, {12, 4});
      append_tensor(catalog, at + expert + "gate_proj.weight", DType::BF16, {4, 12});
      append_tensor(catalog, at + expert + "up_proj.weight", DType::BF16, {4, 12});
    }
  }
  append_tensor(catalog, "model.layers.0.linear_attn.A_log", DType::BF16, {4});
  return catalog;
}

TEST(Qwen3Next, Rules34And38And53_EveryDenseKeyHasItsNativeNameAndBack) {
  for (auto const& [hf, fqn] : kDense) {
    auto const mapping = from_hf(table(), hf, "model.");
    EXPECT_EQ(mapping.fqn, fqn);
    EXPECT_EQ(mapping.stacked, nullptr);
    EXPECT_EQ(to_hf(table(), fqn), hf);
  }
}

TEST(Qwen3Next, Rules1And36And40_ExpertsOfBothFormsAreTheSameParametersInDecoderAndMtp) {
  for (auto const form : {ExpertForm::split, ExpertForm::grouped}) {
    auto const model = map_tensors(qwen3_next(), make_catalog(form), {});
    std::vector<std::string> found;
    for (auto const& parameter : model.parameters) {
      if (!parameter.stacked_experts) continue;
      found.push_back(parameter.fqn + " " + to_string(parameter.shape));
      EXPECT_EQ(parameter.layout, Layout::swapped);
    }
    EXPECT_THAT(found, testing::UnorderedElementsAre("model.layers.0.mlp.experts.gate_and_up_projs [2, 12, 8]",
                                                     "model.layers.0.mlp.experts.down_projs [2, 4, 12]",
                                                     "mtp.layers.0.mlp.experts.gate_and_up_projs [2, 12, 8]",
                                                     "mtp.layers.0.mlp.experts.down_projs [2, 4, 12]"))
        << name(form);
  }
}

TEST(Qwen3Next, Rule41_AMissingMatrixOfTheMtpIsNamed) {
  auto catalog = make_catalog(ExpertForm::split);
  std::string const key = "mtp.layers.0.mlp.experts.1.gate_proj.weight";
  remove_tensor(catalog, key);
  auto const refused = test::refusal_of([&] { (void)map_tensors(qwen3_next(), catalog, {}); });
  EXPECT_EQ(refused.tensor, key);
  EXPECT_THAT(refused.message, HasSubstr("Missing gate/up MTP expert weights for layer 0, expert 1"));
}

TEST(Qwen3Next, Rule55_TheGdnHolderLoadsAsF32AndRemembersItsSource) {
  auto const model = map_tensors(qwen3_next(), make_catalog(ExpertForm::split), {});
  auto const& holder = parameter_of(model, "model.layers.0.linear_attn.A_log");
  EXPECT_EQ(holder.dtype, DType::F32);
  EXPECT_EQ(holder.hf_dtype, DType::BF16);
}

TEST(Qwen3Next, Rule43_AnMtpBehindThePrefixIsTheMtp) {
  EXPECT_EQ(from_hf(table(), "model.mtp.fc.weight", "model.").fqn, "mtp.layers.0.eh_proj.weight");
  auto const mapping = from_hf(table(), "model.mtp.layers.0.mlp.experts.1.up_proj.weight", "model.");
  EXPECT_EQ(mapping.fqn, "mtp.layers.0.mlp.experts.gate_and_up_projs");
}

TEST(Qwen3Next, Rule45_WithoutASourceAllExpertsAreWrittenInTensorsOfTheirOwnAsReleased) {
  std::vector<std::string> keys;
  for (auto const& tensor :
       make_fresh_model(qwen3_next(), {{"model.layers.0.mlp.experts.down_projs", DType::BF16, {1, 4, 6}},
                                       {"mtp.layers.0.mlp.experts.down_projs", DType::BF16, {1, 4, 6}}})
           .tensors) {
    keys.push_back(tensor.key);
  }
  EXPECT_THAT(keys, ElementsAre("model.layers.0.mlp.experts.0.down_proj.weight",
                                "mtp.layers.0.mlp.experts.0.down_proj.weight"));
}

}  // namespace
}  // namespace rankslice
