#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "format/safetensors.hpp"

namespace rankslice {

/// The families that there are synthetic checkpoints of.
enum class SynthFamily : std::uint8_t { qwen3_5_moe, qwen3_vl_moe };

/// `qwen3_5_moe`, as config.json and `--family` have it.
[[nodiscard]] std::string_view name(SynthFamily family);

/// Whose writing a checkpoint looks like. It decides on the axes of stacked experts, dtypes, order and config.json.
enum class SynthLayout : std::uint8_t {
  hub,           ///< The releases on the Hub.
  transformers,  ///< `save_pretrained` of a model that was built from scratch in BF16.
};

/// The experts of the MTP block: two tensors for all of them, or three for each (rule 5).
enum class MtpExperts : std::uint8_t { grouped, split };

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
  /// Qwen3-VL: the blocks whose outputs also go to the decoder, each through a merger of its own.
  std::array<std::uint64_t, 3> deepstack_blocks{8, 16, 24};
};

/// All sizes that the shapes of a model depend on. What its family lacks is zero.
struct ModelDims {
  std::uint64_t hidden = 0;               ///< H
  std::uint64_t intermediate = 0;         ///< I, of one routed expert
  std::uint64_t shared_intermediate = 0;  ///< Qwen3.5: of the shared expert.
  std::uint64_t experts = 0;              ///< E
  std::uint64_t experts_per_token = 0;
  std::uint64_t layers = 0;  ///< Decoder layers; Qwen3.5 has one MTP layer on top.
  std::uint64_t vocab = 0;
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;
  std::uint64_t head_dim = 0;
  std::uint64_t linear_key_heads = 0;    ///< Qwen3.5
  std::uint64_t linear_value_heads = 0;  ///< Qwen3.5
  std::uint64_t linear_head_dim = 128;   ///< Qwen3.5
  std::uint64_t conv_kernel = 4;         ///< Qwen3.5
  VisionDims vision;
};

/// What a synthetic checkpoint is of, its values and files apart.
struct SynthModel {
  SynthFamily family = SynthFamily::qwen3_5_moe;
  ModelDims dims;
  SynthLayout layout = SynthLayout::hub;
  MtpExperts mtp_experts = MtpExperts::grouped;
};

/// Of Qwen3.5: every fourth layer has full attention, the others a gated delta net.
[[nodiscard]] bool has_full_attention(std::uint64_t layer);

/// Whether the checkpoint has a block for multi-token prediction (`mtp.`): Qwen3.5 has on the Hub, transformers has
/// no class for it.
[[nodiscard]] bool has_mtp(SynthModel const& model);

/// Every tensor of a checkpoint. On the Hub they lie in the order in which the model registers them: vision tower,
/// decoder, head, MTP block; transformers sorts them by name.
[[nodiscard]] std::vector<SafetensorsHeader::Tensor> model_tensors(SynthModel const& model);

}  // namespace rankslice
