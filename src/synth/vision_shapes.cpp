#include "synth/vision_shapes.hpp"

#include <fmt/format.h>

namespace rankslice {

namespace {

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

}  // namespace

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

}  // namespace rankslice
