#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// A tensor as a Hugging Face checkpoint names and stores it.
struct SynthTensor {
  std::string name;
  DType dtype = DType::BF16;
  Shape shape;
};

/// Sizes of the vision tower (`model.visual.`).
struct VisionDims {
  std::uint64_t depth = 27;
  std::uint64_t hidden = 1152;
  std::uint64_t intermediate = 4304;
  std::uint64_t heads = 16;
  std::uint64_t positions = 2304;  ///< A square number.
  std::uint64_t channels = 3;
  std::uint64_t patch = 16;
  std::uint64_t temporal_patch = 2;
  std::uint64_t merge = 2;  ///< merge × merge patches become one token.
};

/// All sizes that the shapes of a Qwen3.5-MoE model depend on.
struct Qwen35MoeDims {
  std::uint64_t hidden = 0;               ///< H
  std::uint64_t intermediate = 0;         ///< I, of one routed expert
  std::uint64_t shared_intermediate = 0;  ///< Of the shared expert.
  std::uint64_t experts = 0;              ///< E
  std::uint64_t experts_per_token = 0;
  std::uint64_t layers = 0;  ///< Decoder layers; one MTP layer comes on top.
  std::uint64_t vocab = 0;
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;
  std::uint64_t head_dim = 0;
  std::uint64_t linear_key_heads = 0;
  std::uint64_t linear_value_heads = 0;
  std::uint64_t linear_head_dim = 128;
  std::uint64_t conv_kernel = 4;
  VisionDims vision;
};

/// Every fourth layer has full attention, the others a gated delta net.
[[nodiscard]] bool has_full_attention(std::uint64_t layer);

/// Every tensor of a Qwen3.5-MoE checkpoint with grouped experts, in the order in which the model registers them:
/// vision tower, decoder, head, MTP block.
[[nodiscard]] std::vector<SynthTensor> qwen3_5_moe_tensors(Qwen35MoeDims const& dims);

}  // namespace rankslice
