#include "synth/model_shapes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

#include "synth/block_fp8.hpp"
#include "synth/module.hpp"
#include "synth/vision_shapes.hpp"

namespace rankslice {

namespace {

using enum SynthFamily;

constexpr std::array kArchitectures{
    Architecture{.name = "qwen3_5_moe",
                 .title = "Qwen3.5-MoE",
                 .causal_lm = "Qwen3_5MoeForCausalLM",
                 .with_vision = "Qwen3_5MoeForConditionalGeneration",
                 .delta_net = true,
                 .wide_delta_net = true,
                 .mtp = true,
                 .grouped_experts = true},
    Architecture{.name = "qwen3_vl_moe",
                 .title = "Qwen3-VL-MoE",
                 .causal_lm = {},
                 .with_vision = "Qwen3VLMoeForConditionalGeneration",
                 .grouped_experts = true},
    Architecture{.name = "qwen3_moe",  //
                 .title = "Qwen3-MoE",
                 .causal_lm = "Qwen3MoeForCausalLM",
                 .with_vision = {}},
    Architecture{.name = "qwen3_next",
                 .title = "Qwen3-Next",
                 .causal_lm = "Qwen3NextForCausalLM",
                 .with_vision = {},
                 .delta_net = true,
                 .joint_inputs = true,
                 .mtp = true,
                 .fp8_scales = DType::F32,
                 .fp8_mtp = true},
};

void add_full_attention(Module const& attention, SynthModel const& model) {
  auto const& dims = model.dims;
  auto const queries = dims.heads * dims.head_dim;
  auto const keys = dims.kv_heads * dims.head_dim;
  auto const gates = architecture(model.family).delta_net ? queries : 0;
  attention.add("q_proj.weight", {queries + gates, dims.hidden});
  attention.add("k_proj.weight", {keys, dims.hidden});
  attention.add("v_proj.weight", {keys, dims.hidden});
  attention.add("o_proj.weight", {dims.hidden, queries});
  attention.add("q_norm.weight", {dims.head_dim});
  attention.add("k_norm.weight", {dims.head_dim});
}

void add_delta_net(Module const& attention, SynthModel const& model) {
  auto const& dims = model.dims;
  auto const& kind = architecture(model.family);
  auto const wide = kind.wide_delta_net && model.layout == SynthLayout::hub ? DType::F32 : DType::BF16;  // rules 57, 5a
  auto const values = dims.linear_value_heads * dims.linear_head_dim;
  auto const mixed = 2 * dims.linear_key_heads * dims.linear_head_dim + values;
  attention.add("dt_bias", {dims.linear_value_heads});
  attention.add("A_log", {dims.linear_value_heads}, wide);
  attention.add("conv1d.weight", {mixed, 1, dims.conv_kernel});
  attention.add("norm.weight", {dims.linear_head_dim}, wide);
  attention.add("out_proj.weight", {dims.hidden, values});
  if (kind.joint_inputs) {
    attention.add("in_proj_qkvz.weight", {mixed + values, dims.hidden});
    attention.add("in_proj_ba.weight", {2 * dims.linear_value_heads, dims.hidden});
    return;
  }
  attention.add("in_proj_qkv.weight", {mixed, dims.hidden});
  attention.add("in_proj_z.weight", {values, dims.hidden});
  attention.add("in_proj_b.weight", {dims.linear_value_heads, dims.hidden});
  attention.add("in_proj_a.weight", {dims.linear_value_heads, dims.hidden});
}

ExpertForm decoder_form(SynthModel const& model) {
  if (model.decoder_experts) return *model.decoder_experts;
  if (model.family == qwen3_vl_moe) return ExpertForm::grouped;
  auto const grouped = architecture(model.family).grouped_experts && model.layout == SynthLayout::hub &&
                       model.quantization == SynthQuantization::none;
  return grouped ? ExpertForm::grouped : ExpertForm::split;  // rules 3, 4, 5a
}

ExpertForm mtp_form(SynthModel const& model) {
  auto const grouped = architecture(model.family).grouped_experts;
  return model.mtp_experts.value_or(grouped ? ExpertForm::grouped : ExpertForm::split);  // rule 5
}

void add_grouped_experts(Module const& experts, SynthModel const& model) {
  auto const& dims = model.dims;
  auto const rows_are_inputs = model.family == qwen3_vl_moe && model.layout == SynthLayout::hub;  // rules 2, 3, 5a
  if (rows_are_inputs) {
    experts.add("gate_up_proj", {dims.experts, dims.hidden, 2 * dims.intermediate});
    experts.add("down_proj", {dims.experts, dims.intermediate, dims.hidden});
  } else {
    experts.add("gate_up_proj", {dims.experts, 2 * dims.intermediate, dims.hidden});
    experts.add("down_proj", {dims.experts, dims.hidden, dims.intermediate});
  }
}

void add_split_experts(Module const& experts, ModelDims const& dims) {
  for (std::uint64_t x = 0; x < dims.experts; ++x) {
    auto const expert = experts.child(std::to_string(x));
    expert.add("gate_proj.weight", {dims.intermediate, dims.hidden});
    expert.add("up_proj.weight", {dims.intermediate, dims.hidden});
    expert.add("down_proj.weight", {dims.hidden, dims.intermediate});
  }
}

void add_routed_experts(Module const& experts, SynthModel const& model, ExpertForm form) {
  if (form == ExpertForm::split) {
    add_split_experts(experts, model.dims);
  } else {
    add_grouped_experts(experts, model);
  }
}

void add_shared_expert(Module const& mlp, ModelDims const& dims) {
  mlp.add("shared_expert.gate_proj.weight", {dims.shared_intermediate, dims.hidden});
  mlp.add("shared_expert.up_proj.weight", {dims.shared_intermediate, dims.hidden});
  mlp.add("shared_expert.down_proj.weight", {dims.hidden, dims.shared_intermediate});
  mlp.add("shared_expert_gate.weight", {1, dims.hidden});
}

/// Qwen3-VL registers router and experts the other way round.
void add_mlp(Module const& mlp, SynthModel const& model, ExpertForm form) {
  Shape const router{model.dims.experts, model.dims.hidden};
  if (model.family != qwen3_vl_moe) mlp.add("gate.weight", router);
  add_routed_experts(mlp.child("experts"), model, form);
  if (model.family == qwen3_vl_moe) mlp.add("gate.weight", router);
  if (model.dims.shared_intermediate > 0) add_shared_expert(mlp, model.dims);
}

void add_layer(Module const& layer, SynthModel const& model, ExpertForm form, bool full_attention) {
  if (full_attention) {
    add_full_attention(layer.child("self_attn"), model);
  } else {
    add_delta_net(layer.child("linear_attn"), model);
  }
  add_mlp(layer.child("mlp"), model, form);
  layer.add("input_layernorm.weight", {model.dims.hidden});
  layer.add("post_attention_layernorm.weight", {model.dims.hidden});
}

void add_decoder(Module const& decoder, SynthModel const& model) {
  auto const& dims = model.dims;
  decoder.add("embed_tokens.weight", {dims.vocab, dims.hidden});
  for (std::uint64_t i = 0; i < dims.layers; ++i) {
    auto const full_attention = !architecture(model.family).delta_net || has_full_attention(i);
    add_layer(decoder.child(fmt::format("layers.{}", i)), model, decoder_form(model), full_attention);
  }
  decoder.add("norm.weight", {dims.hidden});
}

void add_mtp(Module const& mtp, SynthModel const& model) {
  auto const hidden = model.dims.hidden;
  mtp.add("fc.weight", {hidden, 2 * hidden});
  add_layer(mtp.child("layers.0"), model, mtp_form(model), true);
  mtp.add("norm.weight", {hidden});
  mtp.add("pre_fc_norm_hidden.weight", {hidden});
  mtp.add("pre_fc_norm_embedding.weight", {hidden});
}

}  // namespace

Architecture const& architecture(SynthFamily family) { return kArchitectures.at(static_cast<std::size_t>(family)); }

std::span<Architecture const> architectures() { return kArchitectures; }

std::string_view name(SynthFamily family) { return architecture(family).name; }

bool has_full_attention(std::uint64_t layer) { return (layer + 1) % 4 == 0; }

bool has_vision(SynthModel const& model) { return !architecture(model.family).with_vision.empty() && !model.text_only; }

bool has_mtp(SynthModel const& model) { return architecture(model.family).mtp && model.layout == SynthLayout::hub; }

std::string stack_of(SafetensorsHeader::Tensor const& tensor) {
  constexpr std::string_view kExperts = ".experts.";
  auto stack = tensor.name;
  auto const experts = stack.find(kExperts);
  if (experts == std::string::npos) return stack;
  auto const number = experts + kExperts.size();
  auto const projection = stack.find_first_not_of("0123456789", number);
  if (projection != number) stack.erase(number, projection + 1 - number);
  return stack;
}

std::vector<SafetensorsHeader::Tensor> model_tensors(SynthModel const& model) {
  std::vector<SafetensorsHeader::Tensor> tensors;
  Module const top(tensors, "");
  if (has_vision(model)) add_vision_tower(top.child("model.visual"), model);
  add_decoder(top.child(has_vision(model) ? "model.language_model" : "model"), model);
  top.add("lm_head.weight", {model.dims.vocab, model.dims.hidden});
  if (has_mtp(model)) add_mtp(top.child("mtp"), model);
  if (model.quantization == SynthQuantization::fp8) tensors = in_block_fp8(tensors, architecture(model.family));
  if (model.layout == SynthLayout::transformers) std::ranges::stable_sort(tensors, {}, stack_of);
  return tensors;
}

}  // namespace rankslice
