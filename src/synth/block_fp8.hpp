#pragma once

#include <string_view>
#include <vector>

#include "format/safetensors.hpp"
#include "synth/model_shapes.hpp"

namespace rankslice {

/// Whether the releases in block-FP8 hold this tensor in FP8: the matrices of routed and shared experts, of attention
/// and of gated delta nets but for their small ones. Norms, embeddings, routers, gates, vision and head stay as they
/// are (rule 60).
[[nodiscard]] bool is_in_fp8(std::string_view key, Architecture const& kind);

/// The same tensors with those matrices in F8_E4M3, each followed by `KEY_scale_inv`, one multiplier for each block of
/// its last two axes, the ones at the edges partial (rules 4, 58).
[[nodiscard]] std::vector<SafetensorsHeader::Tensor> in_block_fp8(std::vector<SafetensorsHeader::Tensor> const& tensors,
                                                                  Architecture const& kind);

}  // namespace rankslice
