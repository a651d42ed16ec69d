#include "synth/side_files.hpp"

#include <nlohmann/json.hpp>

#include "synth/tokenizer.hpp"

namespace rankslice {

namespace {

using nlohmann::json;

constexpr auto kReadme = R"(---
license: apache-2.0
pipeline_tag: image-text-to-text
---

# Synthetic Qwen3.5-MoE

Names, shapes, dtypes and files of a real checkpoint; the values are a hash of seed, tensor name and element index.
Good for testing loaders, of no use for inference.
)";

constexpr auto kLicense = R"(Copyright the rankslice authors

Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with the
License. You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on an
"AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific
language governing permissions and limitations under the License.
)";

constexpr auto kGitAttributes = R"(*.safetensors filter=lfs diff=lfs merge=lfs -text
tokenizer.json filter=lfs diff=lfs merge=lfs -text
)";

constexpr auto kChatTemplate = R"({%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
)";

/// Half the rotary dimension (a quarter of the head), divided among time, height and width.
json mrope_section(Qwen35MoeDims const& dims) {
  auto const pairs = dims.head_dim / 4 / 2;
  auto const third = (pairs + 2) / 3;
  return {third, third, pairs - 2 * third};
}

json layer_types(Qwen35MoeDims const& dims) {
  auto types = json::array();
  for (std::uint64_t i = 0; i < dims.layers; ++i) {
    types.push_back(has_full_attention(i) ? "full_attention" : "linear_attention");
  }
  return types;
}

json text_config(Qwen35MoeDims const& dims) {
  return {{"attention_bias", false},
          {"attention_dropout", 0.0},
          {"attn_output_gate", true},
          {"dtype", "bfloat16"},
          {"eos_token_id", special_token_id("<|endoftext|>")},
          {"full_attention_interval", 4},
          {"head_dim", dims.head_dim},
          {"hidden_act", "silu"},
          {"hidden_size", dims.hidden},
          {"initializer_range", 0.02},
          {"layer_types", layer_types(dims)},
          {"linear_conv_kernel_dim", dims.conv_kernel},
          {"linear_key_head_dim", dims.linear_head_dim},
          {"linear_num_key_heads", dims.linear_key_heads},
          {"linear_num_value_heads", dims.linear_value_heads},
          {"linear_value_head_dim", dims.linear_head_dim},
          {"mamba_ssm_dtype", "float32"},
          {"max_position_embeddings", 262144},
          {"mlp_only_layers", json::array()},
          {"model_type", "qwen3_5_moe_text"},
          {"moe_intermediate_size", dims.intermediate},
          {"mtp_num_hidden_layers", 1},
          {"mtp_use_dedicated_embeddings", false},
          {"num_attention_heads", dims.heads},
          {"num_experts", dims.experts},
          {"num_experts_per_tok", dims.experts_per_token},
          {"num_hidden_layers", dims.layers},
          {"num_key_value_heads", dims.kv_heads},
          {"output_router_logits", false},
          {"rms_norm_eps", 1e-06},
          {"rope_parameters",
           {{"mrope_interleaved", true},
            {"mrope_section", mrope_section(dims)},
            {"partial_rotary_factor", 0.25},
            {"rope_theta", 10000000},
            {"rope_type", "default"}}},
          {"router_aux_loss_coef", 0.001},
          {"shared_expert_intermediate_size", dims.shared_intermediate},
          {"use_cache", true},
          {"vocab_size", dims.vocab}};
}

json vision_config(Qwen35MoeDims const& dims) {
  auto const& vision = dims.vision;
  return {{"deepstack_visual_indexes", json::array()},
          {"depth", vision.depth},
          {"hidden_act", "gelu_pytorch_tanh"},
          {"hidden_size", vision.hidden},
          {"in_channels", vision.channels},
          {"initializer_range", 0.02},
          {"intermediate_size", vision.intermediate},
          {"model_type", "qwen3_5_moe"},
          {"num_heads", vision.heads},
          {"num_position_embeddings", vision.positions},
          {"out_hidden_size", dims.hidden},
          {"patch_size", vision.patch},
          {"spatial_merge_size", vision.merge},
          {"temporal_patch_size", vision.temporal_patch}};
}

std::string generation_config_json() {
  json const config{{"bos_token_id", special_token_id("<|endoftext|>")},
                    {"do_sample", true},
                    {"eos_token_id", {special_token_id("<|im_end|>"), special_token_id("<|endoftext|>")}},
                    {"pad_token_id", special_token_id("<|endoftext|>")},
                    {"temperature", 0.6},
                    {"top_k", 20},
                    {"top_p", 0.95}};
  return config.dump(2) + "\n";
}

std::string preprocessor_config_json(VisionDims const& vision) {
  json const config{{"image_mean", {0.5, 0.5, 0.5}},
                    {"image_processor_type", "Qwen2VLImageProcessorFast"},
                    {"image_std", {0.5, 0.5, 0.5}},
                    {"merge_size", vision.merge},
                    {"patch_size", vision.patch},
                    {"processor_class", "Qwen3VLProcessor"},
                    {"size", {{"longest_edge", 16777216}, {"shortest_edge", 65536}}},
                    {"temporal_patch_size", vision.temporal_patch}};
  return config.dump(2) + "\n";
}

}  // namespace

std::string config_json(Qwen35MoeDims const& dims) {
  json const config{{"architectures", {"Qwen3_5MoeForConditionalGeneration"}},
                    {"image_token_id", special_token_id("<|image_pad|>")},
                    {"model_type", "qwen3_5_moe"},
                    {"text_config", text_config(dims)},
                    {"tie_word_embeddings", false},
                    {"transformers_version", "5.23.0"},
                    {"video_token_id", special_token_id("<|video_pad|>")},
                    {"vision_config", vision_config(dims)},
                    {"vision_end_token_id", special_token_id("<|vision_end|>")},
                    {"vision_start_token_id", special_token_id("<|vision_start|>")}};
  return config.dump(2) + "\n";
}

std::vector<TextFile> side_files(Qwen35MoeDims const& dims) {
  auto files = tokenizer_files();
  files.push_back({"config.json", config_json(dims)});
  files.push_back({"generation_config.json", generation_config_json()});
  files.push_back({"preprocessor_config.json", preprocessor_config_json(dims.vision)});
  files.push_back({"chat_template.jinja", kChatTemplate});
  files.push_back({"README.md", kReadme});
  files.push_back({"LICENSE", kLicense});
  files.push_back({".gitattributes", kGitAttributes});
  return files;
}

}  // namespace rankslice
