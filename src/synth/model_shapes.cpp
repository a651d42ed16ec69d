#include "synth/model_shapes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace rankslice {

namespace {

/// The keys below one prefix, appended to a list.
class Module {
 public:
  Module(std::vector<SafetensorsHeader::Tensor>& tensors, std::string prefix)
      : tensors_(tensors), prefix_(std::move(prefix)) {}

  void add(std::string_view key, Shape shape, DType dtype = DType::BF16) const {
    tensors_.push_back({prefix_ + std::string(key), dtype, std::move(shape), {}});
  }

  /// `key`.weight, and `key`.bias with the sizes of its first axis.
  void add_with_bias(std::string const& key, Shape shape) const {
    auto const outputs = shape.front();
    add(key + ".weight", std::move(shape));
    add(key + ".bias", {outputs});
  }

  [[nodiscard]] Module child(std::string_view name) const { return {tensors_, prefix_ + std::string(name) + "."}; }

 private:
  std::vector<SafetensorsHeader::Tensor>& tensors_;
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

/// Patches to tokens; `normed` is the width at which they are normalised.
void add_merger(Module const& merger, VisionDims const& dims, std::uint64_t normed, std::uint64_t outputs) {
  auto const merged = dims.merge * dims.merge * dims.hidden;
  merger.add_with_bias("norm", {normed});
  merger.add_with_bias("linear_fc1", {merged, merged});
  merger.add_with_bias("linear_fc2", {outputs, merged});
}

void add_vision_tower(Module const& visual, SynthModel const& model) {
  auto const& dims = model.dims.vision;
  visual.add_with_bias("patch_embed.proj", {dims.hidden, dims.channels, dims.temporal_patch, dims.patch, dims.patch});
  visual.add("pos_embed.weight", {dims.positions, dims.hidden});
  for (std::uint64_t i = 0; i < dims.depth; ++i) add_vision_block(visual.child(fmt::format("blocks.{}", i)), dims);
  add_merger(visual.child("merger"), dims, dims.hidden, model.dims.hidden);
  if (model.family != SynthFamily::qwen3_vl_moe) return;
  for (std::size_t i = 0; i < dims.deepstack_blocks.size(); ++i) {
    add_merger(visual.child(fmt::format("deepstack_merger_list.{}", i)), dims, dims.merge * dims.merge * dims.hidden,
               model.dims.hidden);
  }
}

void add_full_attention(Module const& attention, SynthModel const& model) {
  auto const& dims = model.dims;
  auto const queries = dims.heads * dims.head_dim;
  auto const keys = dims.kv_heads * dims.head_dim;
  auto const gates = model.family == SynthFamily::qwen3_5_moe ? queries : 0;
  attention.add("q_proj.weight", {queries + gates, dims.hidden});
  attention.add("k_proj.weight", {keys, dims.hidden});
  attention.add("v_proj.weight", {keys, dims.hidden});
  attention.add("o_proj.weight", {dims.hidden, queries});
  attention.add("q_norm.weight", {dims.head_dim});
  attention.add("k_norm.weight", {dims.head_dim});
}

void add_linear_attention(Module const& attention, SynthModel const& model) {
  auto const& dims = model.dims;
  auto const wide = model.layout == SynthLayout::hub ? DType::F32 : DType::BF16;  // rules 57, 5a
  auto const values = dims.linear_value_heads * dims.linear_head_dim;
  auto const mixed = 2 * dims.linear_key_heads * dims.linear_head_dim + values;
  attention.add("dt_bias", {dims.linear_value_heads});
  attention.add("A_log", {dims.linear_value_heads}, wide);
  attention.add("conv1d.weight", {mixed, 1, dims.conv_kernel});
  attention.add("norm.weight", {dims.linear_head_dim}, wide);
  attention.add("out_proj.weight", {dims.hidden, values});
  attention.add("in_proj_qkv.weight", {mixed, dims.hidden});
  attention.add("in_proj_z.weight", {values, dims.hidden});
  attention.add("in_proj_b.weight", {dims.linear_value_heads, dims.hidden});
  attention.add("in_proj_a.weight", {dims.linear_value_heads, dims.hidden});
}

/// How the routed experts of one layer lie in a checkpoint.
enum class StoredExperts : std::uint8_t { rows_are_inputs, rows_are_outputs, split };

StoredExperts decoder_form(SynthModel const& model) {
  auto const on_hub = model.layout == SynthLayout::hub;
  if (model.family == SynthFamily::qwen3_vl_moe) {
    return on_hub ? StoredExperts::rows_are_inputs : StoredExperts::rows_are_outputs;  // rules 2, 5a
  }
  return on_hub ? StoredExperts::rows_are_outputs : StoredExperts::split;  // rules 3, 5a
}

StoredExperts mtp_form(SynthModel const& model) {
  return model.mtp_experts == MtpExperts::split ? StoredExperts::split : StoredExperts::rows_are_outputs;  // rule 5
}

void add_routed_experts(Module const& experts, ModelDims const& dims, StoredExperts form) {
  switch (form) {
    case StoredExperts::rows_are_inputs:
      experts.add("gate_up_proj", {dims.experts, dims.hidden, 2 * dims.intermediate});
      experts.add("down_proj", {dims.experts, dims.intermediate, dims.hidden});
      return;
    case StoredExperts::rows_are_outputs:
      experts.add("gate_up_proj", {dims.experts, 2 * dims.intermediate, dims.hidden});
      experts.add("down_proj", {dims.experts, dims.hidden, dims.intermediate});
      return;
    case StoredExperts::split:
      for (std::uint64_t x = 0; x < dims.experts; ++x) {
        auto const expert = experts.child(std::to_string(x));
        expert.add("gate_proj.weight", {dims.intermediate, dims.hidden});
        expert.add("up_proj.weight", {dims.intermediate, dims.hidden});
        expert.add("down_proj.weight", {dims.hidden, dims.intermediate});
      }
  }
}

void add_shared_expert(Module const& mlp, ModelDims const& dims) {
  mlp.add("shared_expert.gate_proj.weight", {dims.shared_intermediate, dims.hidden});
  mlp.add("shared_expert.up_proj.weight", {dims.shared_intermediate, dims.hidden});
  mlp.add("shared_expert.down_proj.weight", {dims.hidden, dims.shared_intermediate});
  mlp.add("shared_expert_gate.weight", {1, dims.hidden});
}

/// The two families register router and experts in different orders.
void add_mlp(Module const& mlp, SynthModel const& model, StoredExperts form) {
  auto const& dims = model.dims;
  Shape const router{dims.experts, dims.hidden};
  if (model.family == SynthFamily::qwen3_vl_moe) {
    add_routed_experts(mlp.child("experts"), dims, form);
    mlp.add("gate.weight", router);
  } else {
    mlp.add("gate.weight", router);
    add_routed_experts(mlp.child("experts"), dims, form);
    add_shared_expert(mlp, dims);
  }
}

void add_layer(Module const& layer, SynthModel const& model, StoredExperts form, bool full_attention) {
  if (full_attention) {
    add_full_attention(layer.child("self_attn"), model);
  } else {
    add_linear_attention(layer.child("linear_attn"), model);
  }
  add_mlp(layer.child("mlp"), model, form);
  layer.add("input_layernorm.weight", {model.dims.hidden});
  layer.add("post_attention_layernorm.weight", {model.dims.hidden});
}

void add_decoder(Module const& decoder, SynthModel const& model) {
  auto const& dims = model.dims;
  decoder.add("embed_tokens.weight", {dims.vocab, dims.hidden});
  for (std::uint64_t i = 0; i < dims.layers; ++i) {
    auto const full_attention = model.family == SynthFamily::qwen3_vl_moe || has_full_attention(i);
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

std::string_view name(SynthFamily family) {
  return family == SynthFamily::qwen3_vl_moe ? "qwen3_vl_moe" : "qwen3_5_moe";
}

bool has_full_attention(std::uint64_t layer) { return (layer + 1) % 4 == 0; }

bool has_mtp(SynthModel const& model) {
  return model.family == SynthFamily::qwen3_5_moe && model.layout == SynthLayout::hub;
}

std::vector<SafetensorsHeader::Tensor> model_tensors(SynthModel const& model) {
  std::vector<SafetensorsHeader::Tensor> tensors;
  Module const top(tensors, "");
  add_vision_tower(top.child("model.visual"), model);
  add_decoder(top.child("model.language_model"), model);
  top.add("lm_head.weight", {model.dims.vocab, model.dims.hidden});
  if (has_mtp(model)) add_mtp(top.child("mtp"), model);
  if (model.layout == SynthLayout::transformers) std::ranges::sort(tensors, {}, &SafetensorsHeader::Tensor::name);
  return tensors;
}

}  // namespace rankslice
