#include "synth/model_shapes.hpp"

#include <fmt/format.h>

#include <utility>

namespace rankslice {

namespace {

/// The keys below one prefix, appended to a list.
class Module {
 public:
  Module(std::vector<SynthTensor>& tensors, std::string prefix) : tensors_(tensors), prefix_(std::move(prefix)) {}

  void add(std::string_view key, Shape shape, DType dtype = DType::BF16) const {
    tensors_.push_back({prefix_ + std::string(key), dtype, std::move(shape)});
  }

  /// `key`.weight, and `key`.bias with the sizes of its first axis.
  void add_with_bias(std::string const& key, Shape shape) const {
    auto const outputs = shape.front();
    add(key + ".weight", std::move(shape));
    add(key + ".bias", {outputs});
  }

  [[nodiscard]] Module child(std::string_view name) const { return {tensors_, prefix_ + std::string(name) + "."}; }

 private:
  std::vector<SynthTensor>& tensors_;
  std::string prefix_;
};

void add_vision_block(Module const& block, VisionDims const& dims) {
  block.add_with_bias("norm1", {dims.hidden});
  block.add_with_bias("norm2", {dims.hidden});
  block.add_with_bias("attn.qkv", {3 * dims.hidden, dims.hidden});
  block.add_with_bias("attn.proj", {dims.hidden, dims.hidden});
  block.add_with_bias("mlp.linear_fc1", {dims.intermediate, dims.hidden});
  block.add_with_bias("mlp.linear_fc2", {dims.hidden, dims.intermediate});
}

void add_vision_tower(Module const& visual, VisionDims const& dims, std::uint64_t outputs) {
  visual.add_with_bias("patch_embed.proj", {dims.hidden, dims.channels, dims.temporal_patch, dims.patch, dims.patch});
  visual.add("pos_embed.weight", {dims.positions, dims.hidden});
  for (std::uint64_t i = 0; i < dims.depth; ++i) add_vision_block(visual.child(fmt::format("blocks.{}", i)), dims);
  auto const merged = dims.merge * dims.merge * dims.hidden;
  visual.add_with_bias("merger.norm", {dims.hidden});
  visual.add_with_bias("merger.linear_fc1", {merged, merged});
  visual.add_with_bias("merger.linear_fc2", {outputs, merged});
}

void add_full_attention(Module const& attention, Qwen35MoeDims const& dims) {
  auto const queries = dims.heads * dims.head_dim;
  auto const keys = dims.kv_heads * dims.head_dim;
  attention.add("q_proj.weight", {2 * queries, dims.hidden});  // queries and output gate
  attention.add("k_proj.weight", {keys, dims.hidden});
  attention.add("v_proj.weight", {keys, dims.hidden});
  attention.add("o_proj.weight", {dims.hidden, queries});
  attention.add("q_norm.weight", {dims.head_dim});
  attention.add("k_norm.weight", {dims.head_dim});
}

void add_linear_attention(Module const& attention, Qwen35MoeDims const& dims) {
  auto const values = dims.linear_value_heads * dims.linear_head_dim;
  auto const mixed = 2 * dims.linear_key_heads * dims.linear_head_dim + values;
  attention.add("dt_bias", {dims.linear_value_heads});
  attention.add("A_log", {dims.linear_value_heads}, DType::F32);
  attention.add("conv1d.weight", {mixed, 1, dims.conv_kernel});
  attention.add("norm.weight", {dims.linear_head_dim}, DType::F32);
  attention.add("out_proj.weight", {dims.hidden, values});
  attention.add("in_proj_qkv.weight", {mixed, dims.hidden});
  attention.add("in_proj_z.weight", {values, dims.hidden});
  attention.add("in_proj_b.weight", {dims.linear_value_heads, dims.hidden});
  attention.add("in_proj_a.weight", {dims.linear_value_heads, dims.hidden});
}

void add_experts(Module const& mlp, Qwen35MoeDims const& dims) {
  mlp.add("gate.weight", {dims.experts, dims.hidden});
  mlp.add("experts.gate_up_proj", {dims.experts, 2 * dims.intermediate, dims.hidden});
  mlp.add("experts.down_proj", {dims.experts, dims.hidden, dims.intermediate});
  mlp.add("shared_expert.gate_proj.weight", {dims.shared_intermediate, dims.hidden});
  mlp.add("shared_expert.up_proj.weight", {dims.shared_intermediate, dims.hidden});
  mlp.add("shared_expert.down_proj.weight", {dims.hidden, dims.shared_intermediate});
  mlp.add("shared_expert_gate.weight", {1, dims.hidden});
}

void add_layer(Module const& layer, Qwen35MoeDims const& dims, bool full_attention) {
  if (full_attention) {
    add_full_attention(layer.child("self_attn"), dims);
  } else {
    add_linear_attention(layer.child("linear_attn"), dims);
  }
  add_experts(layer.child("mlp"), dims);
  layer.add("input_layernorm.weight", {dims.hidden});
  layer.add("post_attention_layernorm.weight", {dims.hidden});
}

void add_decoder(Module const& decoder, Qwen35MoeDims const& dims) {
  decoder.add("embed_tokens.weight", {dims.vocab, dims.hidden});
  for (std::uint64_t i = 0; i < dims.layers; ++i) {
    add_layer(decoder.child(fmt::format("layers.{}", i)), dims, has_full_attention(i));
  }
  decoder.add("norm.weight", {dims.hidden});
}

void add_mtp(Module const& mtp, Qwen35MoeDims const& dims) {
  mtp.add("fc.weight", {dims.hidden, 2 * dims.hidden});
  add_layer(mtp.child("layers.0"), dims, true);
  mtp.add("norm.weight", {dims.hidden});
  mtp.add("pre_fc_norm_hidden.weight", {dims.hidden});
  mtp.add("pre_fc_norm_embedding.weight", {dims.hidden});
}

}  // namespace

bool has_full_attention(std::uint64_t layer) { return (layer + 1) % 4 == 0; }

std::vector<SynthTensor> qwen3_5_moe_tensors(Qwen35MoeDims const& dims) {
  std::vector<SynthTensor> tensors;
  Module const top(tensors, "");
  add_vision_tower(top.child("model.visual"), dims.vision, dims.hidden);
  add_decoder(top.child("model.language_model"), dims);
  top.add("lm_head.weight", {dims.vocab, dims.hidden});
  add_mtp(top.child("mtp"), dims);
  return tensors;
}

}  // namespace rankslice
