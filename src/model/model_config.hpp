#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rankslice/parameter.hpp"

namespace rankslice {

/// What config.json says of quantised weights. Empty: not said.
struct Quantisation {
  std::string field;                 ///< Where: `quantization_config`, or `compression_config`, which wins.
  std::string method;                ///< `quant_method`: `fp8`
  std::string format;                ///< `fmt`: `e4m3`
  std::vector<std::uint64_t> block;  ///< `weight_block_size`
  std::string activations;           ///< `activation_scheme`: `dynamic`
};

/// What config.json says of the experts. Zero: not said.
struct ModelConfig {
  std::string model_type;                     ///< Of the outer config: `qwen3_5_moe`.
  std::uint64_t experts = 0;                  ///< E
  std::string experts_field = "num_experts";  ///< Which says so; or `num_local_experts`.
  std::uint64_t hidden = 0;                   ///< H
  std::uint64_t intermediate = 0;             ///< I
  std::uint64_t layers = 0;
  std::uint64_t mtp_layers = 0;
  std::vector<std::uint64_t> dense_layers;  ///< Decoder layers without experts (`mlp_only_layers`).
  std::uint64_t sparse_step = 1;  ///< Only every so many-th decoder layer has experts (`decoder_sparse_step`).
  Quantisation quantisation;
  std::optional<DType> dtype;     ///< In which the model is trained (`dtype`, once `torch_dtype`): BF16, F16 or F32.
  std::string dtype_doubt;        ///< What is said of it, where that is no dtype of these, or more than one.
  std::string mtp_expert_layout;  ///< `mtp_expert_hf_layout`, in which no loading trusts (rule 30); may be empty.
  bool modelopt_file = false;     ///< There is a hf_quant_config.json beside config.json.
  bool partial = false;           ///< Tensors may be missing: a selection of those that the config speaks of.
};

/// @throws FormatError for bytes that are no JSON object, or fields of the wrong type.
[[nodiscard]] ModelConfig parse_model_config(std::span<std::byte const> config_json);

/// Rule 28: how exports hold the experts of MTP by `mtp_expert_layout`, which in any case and with `_` or `-` is
/// `split`, `per-expert`, `per-expert-safetensors`, or `grouped`, `group`; nothing when it is empty.
/// @throws FormatError for others
[[nodiscard]] std::optional<ExpertForm> mtp_form(ModelConfig const& config);

}  // namespace rankslice
