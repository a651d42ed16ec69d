#include "support/model_catalog.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <stdexcept>

#include "model/map_tensors.hpp"
#include "model/qwen3_5_moe.hpp"
#include "model/qwen3_vl_moe.hpp"

namespace rankslice::test {

namespace {

using Size = std::uint64_t;

struct AttentionShape {
  Size hidden, heads, kv_heads, head_dim;
  Size query_gates;  // 2: an output gate beside each query
};

void add_full_attention(TensorCatalog& catalog, std::string const& layer, AttentionShape const& s) {
  auto const at = layer + "self_attn.";
  append_tensor(catalog, at + "q_proj.weight", DType::BF16, {s.query_gates * s.heads * s.head_dim, s.hidden});
  append_tensor(catalog, at + "k_proj.weight", DType::BF16, {s.kv_heads * s.head_dim, s.hidden});
  append_tensor(catalog, at + "v_proj.weight", DType::BF16, {s.kv_heads * s.head_dim, s.hidden});
  append_tensor(catalog, at + "o_proj.weight", DType::BF16, {s.hidden, s.heads * s.head_dim});
  append_tensor(catalog, at + "q_norm.weight", DType::BF16, {s.head_dim});
  append_tensor(catalog, at + "k_norm.weight", DType::BF16, {s.head_dim});
}

void add_norms(TensorCatalog& catalog, std::string const& layer, Size hidden) {
  append_tensor(catalog, layer + "input_layernorm.weight", DType::BF16, {hidden});
  append_tensor(catalog, layer + "post_attention_layernorm.weight", DType::BF16, {hidden});
}

void add_linear_attention(TensorCatalog& catalog, std::string const& layer, Qwen35Shape const& s) {
  auto const at = layer + "linear_attn.";
  auto const keys = s.gdn_head_dim * s.gdn_key_heads;
  auto const values = s.gdn_head_dim * s.gdn_value_heads;
  append_tensor(catalog, at + "in_proj_qkv.weight", DType::BF16, {2 * keys + values, s.hidden});
  append_tensor(catalog, at + "in_proj_z.weight", DType::BF16, {values, s.hidden});
  append_tensor(catalog, at + "in_proj_a.weight", DType::BF16, {s.gdn_value_heads, s.hidden});
  append_tensor(catalog, at + "in_proj_b.weight", DType::BF16, {s.gdn_value_heads, s.hidden});
  append_tensor(catalog, at + "conv1d.weight", DType::BF16, {2 * keys + values, 1, 4});
  append_tensor(catalog, at + "dt_bias", DType::BF16, {s.gdn_value_heads});
  append_tensor(catalog, at + "A_log", DType::F32, {s.gdn_value_heads});
  append_tensor(catalog, at + "norm.weight", DType::F32, {s.gdn_head_dim});
  append_tensor(catalog, at + "out_proj.weight", DType::BF16, {s.hidden, values});
}

struct ExpertShape {
  Size experts, hidden, intermediate;
};

/// [E, 2I, H] and [E, H, I]
void add_swapped_experts(TensorCatalog& catalog, std::string const& layer, ExpertShape const& s) {
  append_tensor(catalog, layer + "mlp.experts.gate_up_proj", DType::BF16, {s.experts, 2 * s.intermediate, s.hidden});
  append_tensor(catalog, layer + "mlp.experts.down_proj", DType::BF16, {s.experts, s.hidden, s.intermediate});
}

/// [E, H, 2I] and [E, I, H]
void add_native_experts(TensorCatalog& catalog, std::string const& layer, ExpertShape const& s) {
  append_tensor(catalog, layer + "mlp.experts.gate_up_proj", DType::BF16, {s.experts, s.hidden, 2 * s.intermediate});
  append_tensor(catalog, layer + "mlp.experts.down_proj", DType::BF16, {s.experts, s.intermediate, s.hidden});
}

/// [I, H], [I, H] and [H, I] for each expert
void add_split_experts(TensorCatalog& catalog, std::string const& layer, ExpertShape const& s) {
  for (Size i = 0; i < s.experts; ++i) {
    auto const expert = fmt::format("{}mlp.experts.{}.", layer, i);
    append_tensor(catalog, expert + "gate_proj.weight", DType::BF16, {s.intermediate, s.hidden});
    append_tensor(catalog, expert + "up_proj.weight", DType::BF16, {s.intermediate, s.hidden});
    append_tensor(catalog, expert + "down_proj.weight", DType::BF16, {s.hidden, s.intermediate});
  }
}

void add_layer(TensorCatalog& catalog, std::string const& layer, bool full_attention, ExpertForm form,
               Qwen35Shape const& s) {
  add_norms(catalog, layer, s.hidden);
  full_attention ? add_full_attention(catalog, layer, {s.hidden, s.heads, s.kv_heads, s.head_dim, 2})
                 : add_linear_attention(catalog, layer, s);
  append_tensor(catalog, layer + "mlp.gate.weight", DType::BF16, {s.experts, s.hidden});
  auto* const add_experts = form == ExpertForm::split ? add_split_experts : add_swapped_experts;
  add_experts(catalog, layer, {s.experts, s.hidden, s.intermediate});
  auto const shared = layer + "mlp.shared_expert.";
  append_tensor(catalog, shared + "gate_proj.weight", DType::BF16, {s.shared_intermediate, s.hidden});
  append_tensor(catalog, shared + "up_proj.weight", DType::BF16, {s.shared_intermediate, s.hidden});
  append_tensor(catalog, shared + "down_proj.weight", DType::BF16, {s.hidden, s.shared_intermediate});
  append_tensor(catalog, layer + "mlp.shared_expert_gate.weight", DType::BF16, {1, s.hidden});
}

void add_layer(TensorCatalog& catalog, std::string const& layer, QwenVlShape const& s) {
  add_norms(catalog, layer, s.hidden);
  add_full_attention(catalog, layer, {s.hidden, s.heads, s.kv_heads, s.head_dim, 1});
  append_tensor(catalog, layer + "mlp.gate.weight", DType::BF16, {s.experts, s.hidden});
  auto* const add_experts = s.layout == ExpertLayout::hub ? add_native_experts : add_swapped_experts;
  add_experts(catalog, layer, {s.experts, s.hidden, s.intermediate});
}

void add_with_bias(TensorCatalog& catalog, std::string const& module, Shape const& weight) {
  append_tensor(catalog, module + ".weight", DType::BF16, weight);
  append_tensor(catalog, module + ".bias", DType::BF16, {weight.front()});
}

template <typename ModelShape>
void add_vision(TensorCatalog& catalog, ModelShape const& s) {
  std::string const at = "model.visual.";
  auto const width = s.vision_hidden;
  add_with_bias(catalog, at + "patch_embed.proj", {width, 3, 2, 16, 16});
  append_tensor(catalog, at + "pos_embed.weight", DType::BF16, {s.vision_positions, width});
  for (Size i = 0; i < s.vision_depth; ++i) {
    auto const block = fmt::format("{}blocks.{}.", at, i);
    add_with_bias(catalog, block + "norm1", {width});
    add_with_bias(catalog, block + "norm2", {width});
    add_with_bias(catalog, block + "attn.qkv", {3 * width, width});
    add_with_bias(catalog, block + "attn.proj", {width, width});
    add_with_bias(catalog, block + "mlp.linear_fc1", {s.vision_intermediate, width});
    add_with_bias(catalog, block + "mlp.linear_fc2", {width, s.vision_intermediate});
  }
  add_with_bias(catalog, at + "merger.norm", {width});
  add_with_bias(catalog, at + "merger.linear_fc1", {4 * width, 4 * width});
  add_with_bias(catalog, at + "merger.linear_fc2", {s.hidden, 4 * width});
}

void add_deepstack(TensorCatalog& catalog, QwenVlShape const& s) {
  auto const width = 4 * s.vision_hidden;
  for (Size i = 0; i < 3; ++i) {
    auto const merger = fmt::format("model.visual.deepstack_merger_list.{}.", i);
    add_with_bias(catalog, merger + "norm", {width});
    add_with_bias(catalog, merger + "linear_fc1", {width, width});
    add_with_bias(catalog, merger + "linear_fc2", {s.hidden, width});
  }
}

void add_mtp(TensorCatalog& catalog, Qwen35Shape const& s) {
  append_tensor(catalog, "mtp.fc.weight", DType::BF16, {s.hidden, 2 * s.hidden});
  append_tensor(catalog, "mtp.norm.weight", DType::BF16, {s.hidden});
  append_tensor(catalog, "mtp.pre_fc_norm_embedding.weight", DType::BF16, {s.hidden});
  append_tensor(catalog, "mtp.pre_fc_norm_hidden.weight", DType::BF16, {s.hidden});
  for (Size i = 0; i < s.mtp_layers; ++i) add_layer(catalog, fmt::format("mtp.layers.{}.", i), true, s.mtp_form, s);
}

TensorCatalog one_file() {
  return {.files = {{.name = "model.safetensors", .path = "model.safetensors", .size = 0}}, .tensors = {}};
}

}  // namespace

Qwen35Shape tiny_qwen35() {
  return {.hidden = 16,
          .intermediate = 8,
          .experts = 4,
          .layers = 4,
          .mtp_layers = 1,
          .vocab = 32,
          .shared_intermediate = 8,
          .heads = 2,
          .kv_heads = 1,
          .head_dim = 8,
          .gdn_key_heads = 1,
          .gdn_value_heads = 2,
          .gdn_head_dim = 8,
          .vision_depth = 1,
          .vision_hidden = 8,
          .vision_intermediate = 12,
          .vision_positions = 4};
}

QwenVlShape tiny_qwen_vl() {
  return {.hidden = 12,
          .intermediate = 8,
          .experts = 4,
          .layers = 3,
          .vocab = 32,
          .heads = 2,
          .kv_heads = 1,
          .head_dim = 8,
          .vision_depth = 1,
          .vision_hidden = 8,
          .vision_intermediate = 12,
          .vision_positions = 4};
}

Qwen35Shape qwen35_122b() {
  Qwen35Shape shape;
  shape.hidden = 3072;
  shape.intermediate = shape.shared_intermediate = 1024;
  shape.layers = 48;
  shape.heads = 32;
  shape.gdn_value_heads = 64;
  shape.mtp_form = ExpertForm::split;
  return shape;
}

Qwen35Shape qwen35_397b() {
  auto shape = qwen35_122b();
  shape.hidden = 4096;
  shape.experts = 512;
  shape.layers = 60;
  return shape;
}

QwenVlShape qwen_vl_235b() {
  QwenVlShape shape;
  shape.hidden = 4096;
  shape.intermediate = 1536;
  shape.layers = 94;
  shape.heads = 64;
  return shape;
}

TensorCatalog make_catalog(Qwen35Shape const& shape) {
  auto catalog = one_file();
  append_tensor(catalog, "lm_head.weight", DType::BF16, {shape.vocab, shape.hidden});
  std::string const at = "model.language_model.";
  append_tensor(catalog, at + "embed_tokens.weight", DType::BF16, {shape.vocab, shape.hidden});
  for (Size i = 0; i < shape.layers; ++i) {
    add_layer(catalog, fmt::format("{}layers.{}.", at, i), (i + 1) % 4 == 0, shape.experts_form, shape);
  }
  append_tensor(catalog, at + "norm.weight", DType::BF16, {shape.hidden});
  if (shape.vision_depth > 0) add_vision(catalog, shape);
  if (shape.mtp_layers > 0) add_mtp(catalog, shape);
  return catalog;
}

TensorCatalog make_vl_catalog(QwenVlShape const& shape) {
  auto catalog = one_file();
  append_tensor(catalog, "lm_head.weight", DType::BF16, {shape.vocab, shape.hidden});
  std::string const at = "model.language_model.";
  append_tensor(catalog, at + "embed_tokens.weight", DType::BF16, {shape.vocab, shape.hidden});
  for (Size i = 0; i < shape.layers; ++i) add_layer(catalog, fmt::format("{}layers.{}.", at, i), shape);
  append_tensor(catalog, at + "norm.weight", DType::BF16, {shape.hidden});
  add_vision(catalog, shape);
  add_deepstack(catalog, shape);
  return catalog;
}

void append_tensor(TensorCatalog& catalog, std::string name, DType dtype, Shape shape) {
  auto& file = catalog.files.back();
  auto const begin = file.size;
  file.size += byte_size(dtype, shape);
  auto const index = static_cast<std::uint32_t>(catalog.files.size() - 1);
  catalog.tensors.push_back({.name = std::move(name),
                             .dtype = dtype,
                             .shape = std::move(shape),
                             .extent = {.file = index, .bytes = {begin, file.size}}});
}

CatalogTensor& tensor_named(TensorCatalog& catalog, std::string_view name) {
  auto const found = std::ranges::find(catalog.tensors, name, &CatalogTensor::name);
  if (found == catalog.tensors.end()) throw std::out_of_range(std::string(name));
  return *found;
}

void remove_tensor(TensorCatalog& catalog, std::string_view name) {
  auto const& tensor = tensor_named(catalog, name);
  catalog.tensors.erase(catalog.tensors.begin() + (&tensor - catalog.tensors.data()));
}

ModelConfig make_config(Qwen35Shape const& shape) {
  ModelConfig config;
  config.model_type = "qwen3_5_moe";
  config.experts = shape.experts;
  config.hidden = shape.hidden;
  config.intermediate = shape.intermediate;
  config.layers = shape.layers;
  config.mtp_layers = shape.mtp_layers;
  return config;
}

ModelConfig make_vl_config(QwenVlShape const& shape) {
  ModelConfig config;
  config.model_type = "qwen3_vl_moe";
  config.experts = shape.experts;
  config.hidden = shape.hidden;
  config.intermediate = shape.intermediate;
  config.layers = shape.layers;
  return config;
}

std::string make_config_json(Qwen35Shape const& shape) {
  nlohmann::ordered_json const text{{"model_type", "qwen3_5_moe_text"},
                                    {"vocab_size", shape.vocab},
                                    {"hidden_size", shape.hidden},
                                    {"num_hidden_layers", shape.layers},
                                    {"mtp_num_hidden_layers", shape.mtp_layers},
                                    {"num_attention_heads", shape.heads},
                                    {"num_key_value_heads", shape.kv_heads},
                                    {"head_dim", shape.head_dim},
                                    {"linear_num_key_heads", shape.gdn_key_heads},
                                    {"linear_num_value_heads", shape.gdn_value_heads},
                                    {"linear_key_head_dim", shape.gdn_head_dim},
                                    {"linear_value_head_dim", shape.gdn_head_dim},
                                    {"num_experts", shape.experts},
                                    {"moe_intermediate_size", shape.intermediate},
                                    {"shared_expert_intermediate_size", shape.shared_intermediate},
                                    {"mlp_only_layers", nlohmann::ordered_json::array()}};
  nlohmann::ordered_json const vision{{"model_type", "qwen3_5_moe_vision"},
                                      {"depth", shape.vision_depth},
                                      {"hidden_size", shape.vision_hidden},
                                      {"intermediate_size", shape.vision_intermediate},
                                      {"num_position_embeddings", shape.vision_positions},
                                      {"out_hidden_size", shape.hidden}};
  nlohmann::ordered_json const outer{{"architectures", {"Qwen3_5MoeForConditionalGeneration"}},
                                     {"model_type", "qwen3_5_moe"},
                                     {"text_config", text},
                                     {"vision_config", vision}};
  return outer.dump(2) + "\n";
}

Model make_model(Qwen35Shape const& shape) {
  return map_tensors(qwen3_5_moe(), make_catalog(shape), make_config(shape));
}

Model make_vl_model(QwenVlShape const& shape) {
  return map_tensors(qwen3_vl_moe(), make_vl_catalog(shape), make_vl_config(shape));
}

Model map_tensors(Family const& family, TensorCatalog const& catalog, ModelConfig const& config) {
  std::vector<std::string> warnings;
  return rankslice::map_tensors(family, catalog, config, {}, warnings);
}

HfTensor const& tensor_of(Model const& model, std::string_view key) {
  auto const found = std::ranges::find(model.tensors, key, &HfTensor::key);
  if (found == model.tensors.end()) throw std::out_of_range(std::string(key));
  return *found;
}

Parameter const& parameter_of(Model const& model, std::string_view key) {
  return model.parameters[tensor_of(model, key).parameter];
}

}  // namespace rankslice::test
