#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/dtype.hpp"
#include "rankslice/parameter.hpp"

#include "format/safetensors.hpp"

namespace rankslice {

/// The families that there are synthetic checkpoints of.
enum class SynthFamily : std::uint8_t { qwen3_5_moe, qwen3_vl_moe, qwen3_moe, qwen3_next };

/// What the models of a family are made of, and how their releases on the Hub hold it.
struct Architecture {
  std::string_view name;           ///< `qwen3_5_moe`, as config.json and `--family` have it.
  std::string_view title;          ///< For people.
  std::string_view causal_lm;      ///< The class of the model without vision; empty: there is none.
  std::string_view with_vision;    ///< The class of the model with vision; empty: there is none.
  bool delta_net = false;          ///< Three of four layers have a gated delta net; queries have an output gate.
  bool joint_inputs = false;       ///< The delta net's inputs are `in_proj_qkvz` and `in_proj_ba`, not four.
  bool wide_delta_net = false;     ///< Its A_log and norm are F32 (rule 57).
  bool mtp = false;                ///< A block for multi-token prediction.
  bool grouped_experts = false;    ///< All experts of a layer in one tensor for each projection.
  DType fp8_scales = DType::BF16;  ///< Of the releases in block-FP8.
  bool fp8_mtp = false;            ///< There the MTP block is in FP8 too.
};

[[nodiscard]] Architecture const& architecture(SynthFamily family);

/// All of them, in the order of SynthFamily.
[[nodiscard]] std::span<Architecture const> architectures();

/// `qwen3_5_moe`, as config.json and `--family` have it.
[[nodiscard]] std::string_view name(SynthFamily family);

/// Whose writing a checkpoint looks like. It decides on the axes of stacked experts, dtypes, order and config.json.
enum class SynthLayout : std::uint8_t {
  hub,           ///< The releases on the Hub.
  transformers,  ///< `save_pretrained` of a model that was built from scratch in BF16.
};

/// What the matrices of the decoder are stored as.
enum class SynthQuantization : std::uint8_t {
  none,
  fp8,  ///< F8_E4M3 with scales of 128 × 128 blocks, as the FP8 releases (rules 4, 58, 60).
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
  /// Qwen3-VL: the blocks whose outputs also go to the decoder, each through a merger of its own.
  std::array<std::uint64_t, 3> deepstack_blocks{8, 16, 24};
};

/// All sizes that the shapes of a model depend on. What its family lacks is zero.
struct ModelDims {
  std::uint64_t hidden = 0;               ///< H
  std::uint64_t intermediate = 0;         ///< I, of one routed expert
  std::uint64_t shared_intermediate = 0;  ///< Of the shared expert.
  std::uint64_t experts = 0;              ///< E
  std::uint64_t experts_per_token = 0;
  std::uint64_t layers = 0;  ///< Of the decoder; an MTP block has one more.
  std::uint64_t vocab = 0;
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;
  std::uint64_t head_dim = 0;
  std::uint64_t linear_key_heads = 0;  ///< Of gated delta nets, like the next three.
  std::uint64_t linear_value_heads = 0;
  std::uint64_t linear_head_dim = 128;
  std::uint64_t conv_kernel = 4;
  VisionDims vision;
};

/// What a synthetic checkpoint is of, its values and files apart.
struct SynthModel {
  SynthFamily family = SynthFamily::qwen3_5_moe;
  ModelDims dims;
  SynthLayout layout = SynthLayout::hub;
  SynthQuantization quantization = SynthQuantization::none;
  bool text_only = false;  ///< The decoder of a model with vision as a model by itself: `model.layers.…`
  std::optional<ExpertForm> decoder_experts = std::nullopt;  ///< Nothing: as this family, layout and quantisation have.
  std::optional<ExpertForm> mtp_experts = std::nullopt;      ///< Nothing: as the family has.
};

/// Whether a layer of a model with gated delta nets has full attention: every fourth one.
[[nodiscard]] bool has_full_attention(std::uint64_t layer);

/// Whether the checkpoint has a vision tower, and its decoder lies below `model.language_model.`.
[[nodiscard]] bool has_vision(SynthModel const& model);

/// Whether the checkpoint has a block for multi-token prediction (`mtp.`): on the Hub, transformers has no class for
/// it.
[[nodiscard]] bool has_mtp(SynthModel const& model);

/// The name of a tensor, of a split expert without its number: transformers sorts by name, and divides into files,
/// while all experts of a projection are still one tensor.
[[nodiscard]] std::string stack_of(SafetensorsHeader::Tensor const& tensor);

/// Every tensor of a checkpoint. On the Hub they lie in the order in which the model registers them: vision tower,
/// decoder, head, MTP block, scales right after their weights; transformers sorts them by `stack_of`.
[[nodiscard]] std::vector<SafetensorsHeader::Tensor> model_tensors(SynthModel const& model);

}  // namespace rankslice
