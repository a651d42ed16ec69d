#include "synth/config_json.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/block_scales.hpp"
#include "synth/block_fp8.hpp"
#include "synth/tokenizer.hpp"

namespace rankslice {

namespace {

using nlohmann::json;
using enum SynthFamily;

bool is_on_hub(SynthModel const& model) { return model.layout == SynthLayout::hub; }

/// Half the rotated part of a head, divided among time, height and width.
json mrope_section(SynthModel const& model) {
  auto const vl = model.family == qwen3_vl_moe;
  auto const rotated = vl ? model.dims.head_dim : model.dims.head_dim / 4;
  auto const pairs = rotated / 2;
  if (vl) {  // 24, 20, 20 of 64
    auto const space = pairs * 5 / 16;
    return {pairs - 2 * space, space, space};
  }
  auto const third = (pairs + 2) / 3;
  return {third, third, pairs - 2 * third};
}

json layer_types(ModelDims const& dims) {
  auto types = json::array();
  for (std::uint64_t i = 0; i < dims.layers; ++i) {
    types.push_back(has_full_attention(i) ? "full_attention" : "linear_attention");
  }
  return types;
}

/// What all families say of their decoder in both layouts.
json decoder_config(SynthModel const& model) {
  auto const& dims = model.dims;
  auto const* const end = model.family == qwen3_5_moe ? "<|endoftext|>" : "<|im_end|>";
  return {{"attention_bias", false},
          {"attention_dropout", 0.0},
          {"eos_token_id", special_token_id(end)},
          {"head_dim", dims.head_dim},
          {"hidden_act", "silu"},
          {"hidden_size", dims.hidden},
          {"initializer_range", 0.02},
          {"max_position_embeddings", 262144},
          {"model_type", architecture(model.family).with_vision.empty() ? std::string(name(model.family))
                                                                        : fmt::format("{}_text", name(model.family))},
          {"moe_intermediate_size", dims.intermediate},
          {"num_attention_heads", dims.heads},
          {"num_experts_per_tok", dims.experts_per_token},
          {"num_hidden_layers", dims.layers},
          {"num_key_value_heads", dims.kv_heads},
          {"rms_norm_eps", 1e-06},
          {"use_cache", true},
          {"vocab_size", dims.vocab}};
}

json delta_net_fields(ModelDims const& dims) {
  return {{"linear_conv_kernel_dim", dims.conv_kernel},
          {"linear_key_head_dim", dims.linear_head_dim},
          {"linear_num_key_heads", dims.linear_key_heads},
          {"linear_num_value_heads", dims.linear_value_heads},
          {"linear_value_head_dim", dims.linear_head_dim},
          {"num_experts", dims.experts},
          {"output_router_logits", false},
          {"router_aux_loss_coef", 0.001},
          {"shared_expert_intermediate_size", dims.shared_intermediate}};
}

json qwen3_5_fields(SynthModel const& model) {
  auto fields = delta_net_fields(model.dims);
  fields["layer_types"] = layer_types(model.dims);
  fields["rope_parameters"] = {{"mrope_interleaved", true},
                               {"mrope_section", mrope_section(model)},
                               {"partial_rotary_factor", 0.25},
                               {"rope_theta", 10000000},
                               {"rope_type", "default"}};
  if (is_on_hub(model)) {
    fields.update({{"attn_output_gate", true},
                   {"dtype", "bfloat16"},
                   {"full_attention_interval", 4},
                   {"mamba_ssm_dtype", "float32"},
                   {"mlp_only_layers", json::array()},
                   {"mtp_num_hidden_layers", 1},
                   {"mtp_use_dedicated_embeddings", false}});
  } else {
    fields.update({{"bos_token_id", nullptr}, {"pad_token_id", nullptr}, {"tie_word_embeddings", false}});
  }
  return fields;
}

/// What a decoder says in which layers without experts were possible; there are none.
json sparse_step_fields(SynthModel const& model) {
  return {{"bos_token_id", special_token_id("<|endoftext|>")},
          {"decoder_sparse_step", 1},
          {"intermediate_size", 3 * model.dims.hidden},
          {"mlp_only_layers", json::array()}};
}

json qwen3_vl_fields(SynthModel const& model) {
  auto fields = sparse_step_fields(model);
  if (is_on_hub(model)) {
    fields.update({{"dtype", "bfloat16"},
                   {"norm_topk_prob", true},
                   {"num_experts", model.dims.experts},
                   {"rope_scaling",
                    {{"mrope_interleaved", true}, {"mrope_section", mrope_section(model)}, {"rope_type", "default"}}},
                   {"rope_theta", 5000000}});
  } else {
    fields.update({{"num_local_experts", model.dims.experts},
                   {"output_router_logits", false},
                   {"pad_token_id", nullptr},
                   {"rope_parameters",
                    {{"mrope_interleaved", true},
                     {"mrope_section", mrope_section(model)},
                     {"rope_theta", 5000000},
                     {"rope_type", "default"}}},
                   {"router_aux_loss_coef", 0.001},
                   {"sliding_window", nullptr},
                   {"tie_word_embeddings", true}});  // its default; the one beside text_config counts
  }
  return fields;
}

json qwen3_moe_fields(SynthModel const& model) {
  auto fields = sparse_step_fields(model);
  fields.update({{"norm_topk_prob", true},
                 {"output_router_logits", false},
                 {"router_aux_loss_coef", 0.001},
                 {"sliding_window", nullptr},
                 {"use_sliding_window", false}});
  if (is_on_hub(model)) {
    fields.update({{"max_window_layers", model.dims.layers},
                   {"num_experts", model.dims.experts},
                   {"rope_scaling", nullptr},
                   {"rope_theta", 1000000.0}});
  } else {
    fields.update({{"num_local_experts", model.dims.experts},
                   {"pad_token_id", nullptr},
                   {"rope_parameters", {{"rope_theta", 1000000.0}, {"rope_type", "default"}}}});
  }
  return fields;
}

json qwen3_next_fields(SynthModel const& model) {
  auto fields = sparse_step_fields(model);
  fields.update(delta_net_fields(model.dims));
  fields["norm_topk_prob"] = true;
  if (is_on_hub(model)) {
    fields.update({{"full_attention_interval", 4},
                   {"partial_rotary_factor", 0.25},
                   {"rope_scaling", nullptr},
                   {"rope_theta", 10000000},
                   {"use_sliding_window", false}});
  } else {
    fields.update(
        {{"layer_types", layer_types(model.dims)},
         {"pad_token_id", nullptr},
         {"rope_parameters", {{"partial_rotary_factor", 0.25}, {"rope_theta", 10000000}, {"rope_type", "default"}}}});
  }
  return fields;
}

json family_fields(SynthModel const& model) {
  switch (model.family) {
    case qwen3_5_moe:
      return qwen3_5_fields(model);
    case qwen3_vl_moe:
      return qwen3_vl_fields(model);
    case qwen3_moe:
      return qwen3_moe_fields(model);
    case qwen3_next:
      return qwen3_next_fields(model);
  }
  return {};
}

json text_config(SynthModel const& model) {
  auto config = decoder_config(model);
  config.update(family_fields(model));
  return config;
}

json vision_config(SynthModel const& model) {
  auto const& vision = model.dims.vision;
  json config{{"depth", vision.depth},
              {"hidden_act", "gelu_pytorch_tanh"},
              {"hidden_size", vision.hidden},
              {"in_channels", vision.channels},
              {"initializer_range", 0.02},
              {"intermediate_size", vision.intermediate},
              {"model_type", name(model.family)},
              {"num_heads", vision.heads},
              {"num_position_embeddings", vision.positions},
              {"out_hidden_size", model.dims.hidden},
              {"patch_size", vision.patch},
              {"spatial_merge_size", vision.merge},
              {"temporal_patch_size", vision.temporal_patch}};
  if (model.family == qwen3_vl_moe) {
    config["deepstack_visual_indexes"] = vision.deepstack_blocks;
  } else if (is_on_hub(model)) {
    config["deepstack_visual_indexes"] = json::array();
  }
  if (!is_on_hub(model)) {
    config["model_type"] = fmt::format("{}_vision", name(model.family));
    config["rope_parameters"] = {{"rope_theta", 10000.0}, {"rope_type", "axial"}};
  }
  return config;
}

/// By name and without `.weight`, whatever is not in FP8 but biases.
json modules_to_not_convert(SynthModel const& model) {
  constexpr std::string_view kWeight = ".weight";
  auto modules = json::array();
  for (auto const& tensor : model_tensors(model)) {
    std::string_view key = tensor.name;
    if (is_in_fp8(key, architecture(model.family)) || key.ends_with("_scale_inv") || key.ends_with(".bias")) continue;
    if (key.ends_with(kWeight)) key.remove_suffix(kWeight.size());
    modules.push_back(key);
  }
  return modules;
}

json quantization_config(SynthModel const& model) {
  return {{"activation_scheme", "dynamic"},
          {"fmt", "e4m3"},
          {"modules_to_not_convert", modules_to_not_convert(model)},
          {"quant_method", "fp8"},
          {"weight_block_size", {kScaleBlock, kScaleBlock}}};
}

json config_with_vision(SynthModel const& model) {
  return {{"architectures", {architecture(model.family).with_vision}},
          {"image_token_id", special_token_id("<|image_pad|>")},
          {"model_type", name(model.family)},
          {"text_config", text_config(model)},
          {"video_token_id", special_token_id("<|video_pad|>")},
          {"vision_config", vision_config(model)},
          {"vision_end_token_id", special_token_id("<|vision_end|>")},
          {"vision_start_token_id", special_token_id("<|vision_start|>")}};
}

json config_of_text_model(SynthModel const& model) {
  auto config = text_config(model);
  config["architectures"] = {architecture(model.family).causal_lm};
  if (is_on_hub(model) && !config.contains("dtype")) config["torch_dtype"] = "bfloat16";
  return config;
}

}  // namespace

std::string config_json(SynthModel const& model) {
  auto config = has_vision(model) ? config_with_vision(model) : config_of_text_model(model);
  config["tie_word_embeddings"] = false;
  config["transformers_version"] = "5.23.0";
  if (!is_on_hub(model)) config["dtype"] = "bfloat16";
  if (model.quantization == SynthQuantization::fp8) config["quantization_config"] = quantization_config(model);
  return config.dump(2) + "\n";
}

}  // namespace rankslice
