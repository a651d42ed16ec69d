#include "synth/config_json.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "synth/tokenizer.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

bool is_vl(SynthModel const& model) { return model.family == SynthFamily::qwen3_vl_moe; }
bool is_on_hub(SynthModel const& model) { return model.layout == SynthLayout::hub; }

/// Half the rotated part of a head, divided among time, height and width.
json mrope_section(SynthModel const& model) {
  auto const rotated = is_vl(model) ? model.dims.head_dim : model.dims.head_dim / 4;
  auto const pairs = rotated / 2;
  if (is_vl(model)) {  // 24, 20, 20 of 64
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

/// What both families say of their decoder in both layouts.
json decoder_config(SynthModel const& model) {
  auto const& dims = model.dims;
  return {{"attention_bias", false},
          {"attention_dropout", 0.0},
          {"eos_token_id", special_token_id(is_vl(model) ? "<|im_end|>" : "<|endoftext|>")},
          {"head_dim", dims.head_dim},
          {"hidden_act", "silu"},
          {"hidden_size", dims.hidden},
          {"initializer_range", 0.02},
          {"max_position_embeddings", 262144},
          {"model_type", fmt::format("{}_text", name(model.family))},
          {"moe_intermediate_size", dims.intermediate},
          {"num_attention_heads", dims.heads},
          {"num_experts_per_tok", dims.experts_per_token},
          {"num_hidden_layers", dims.layers},
          {"num_key_value_heads", dims.kv_heads},
          {"rms_norm_eps", 1e-06},
          {"use_cache", true},
          {"vocab_size", dims.vocab}};
}

json qwen3_5_fields(SynthModel const& model) {
  auto const& dims = model.dims;
  return {{"layer_types", layer_types(dims)},
          {"linear_conv_kernel_dim", dims.conv_kernel},
          {"linear_key_head_dim", dims.linear_head_dim},
          {"linear_num_key_heads", dims.linear_key_heads},
          {"linear_num_value_heads", dims.linear_value_heads},
          {"linear_value_head_dim", dims.linear_head_dim},
          {"num_experts", dims.experts},
          {"output_router_logits", false},
          {"rope_parameters",
           {{"mrope_interleaved", true},
            {"mrope_section", mrope_section(model)},
            {"partial_rotary_factor", 0.25},
            {"rope_theta", 10000000},
            {"rope_type", "default"}}},
          {"router_aux_loss_coef", 0.001},
          {"shared_expert_intermediate_size", dims.shared_intermediate}};
}

json qwen3_5_hub_fields() {
  return {{"attn_output_gate", true},
          {"dtype", "bfloat16"},
          {"full_attention_interval", 4},
          {"mamba_ssm_dtype", "float32"},
          {"mlp_only_layers", json::array()},
          {"mtp_num_hidden_layers", 1},
          {"mtp_use_dedicated_embeddings", false}};
}

json qwen3_5_transformers_fields() {
  return {{"bos_token_id", nullptr}, {"pad_token_id", nullptr}, {"tie_word_embeddings", false}};
}

json qwen3_vl_fields(SynthModel const& model) {
  return {{"bos_token_id", special_token_id("<|endoftext|>")},
          {"decoder_sparse_step", 1},
          {"intermediate_size", 3 * model.dims.hidden},  // of layers without experts, which there are none of
          {"mlp_only_layers", json::array()}};
}

json qwen3_vl_hub_fields(SynthModel const& model) {
  return {{"dtype", "bfloat16"},
          {"norm_topk_prob", true},
          {"num_experts", model.dims.experts},
          {"rope_scaling",
           {{"mrope_interleaved", true}, {"mrope_section", mrope_section(model)}, {"rope_type", "default"}}},
          {"rope_theta", 5000000}};
}

json qwen3_vl_transformers_fields(SynthModel const& model) {
  return {{"num_local_experts", model.dims.experts},
          {"output_router_logits", false},
          {"pad_token_id", nullptr},
          {"rope_parameters",
           {{"mrope_interleaved", true},
            {"mrope_section", mrope_section(model)},
            {"rope_theta", 5000000},
            {"rope_type", "default"}}},
          {"router_aux_loss_coef", 0.001},
          {"sliding_window", nullptr},
          {"tie_word_embeddings", true}};  // its default; the one beside text_config counts
}

json text_config(SynthModel const& model) {
  auto config = decoder_config(model);
  if (is_vl(model)) {
    config.update(qwen3_vl_fields(model));
    config.update(is_on_hub(model) ? qwen3_vl_hub_fields(model) : qwen3_vl_transformers_fields(model));
  } else {
    config.update(qwen3_5_fields(model));
    config.update(is_on_hub(model) ? qwen3_5_hub_fields() : qwen3_5_transformers_fields());
  }
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
  if (is_vl(model)) {
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

}  // namespace

std::string config_json(SynthModel const& model) {
  json config{
      {"architectures", {is_vl(model) ? "Qwen3VLMoeForConditionalGeneration" : "Qwen3_5MoeForConditionalGeneration"}},
      {"image_token_id", special_token_id("<|image_pad|>")},
      {"model_type", name(model.family)},
      {"text_config", text_config(model)},
      {"tie_word_embeddings", false},
      {"transformers_version", "5.23.0"},
      {"video_token_id", special_token_id("<|video_pad|>")},
      {"vision_config", vision_config(model)},
      {"vision_end_token_id", special_token_id("<|vision_end|>")},
      {"vision_start_token_id", special_token_id("<|vision_start|>")}};
  if (!is_on_hub(model)) config["dtype"] = "bfloat16";
  return config.dump(2) + "\n";
}

}  // namespace rankslice
