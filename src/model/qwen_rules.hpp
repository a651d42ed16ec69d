#pragma once

#include <array>
#include <string_view>

#include "model/key_table.hpp"

namespace rankslice::qwen {

/// What several families of Qwen3 have in common: pieces of their tables.

/// Experts of a text model's decoder. Split as the Hub has them and transformers writes them by default; grouped as it
/// does with save_original_format=False: [E, 2I, H] and [E, H, I].
inline constexpr std::array kTextGateUp{
    SplitRule{"[model.]layers.{L}.mlp.experts.{X}.gate_proj.weight",
              "Missing gate_proj weight for layer {L}, expert {X}",
              "Missing FP8 gate_proj weight/scale for layer {L}, expert {X}"},
    SplitRule{"[model.]layers.{L}.mlp.experts.{X}.up_proj.weight", "Missing up_proj weight for layer {L}, expert {X}",
              "Missing FP8 up_proj weight/scale for layer {L}, expert {X}"},
};
inline constexpr std::array kTextDown{
    SplitRule{"[model.]layers.{L}.mlp.experts.{X}.down_proj.weight",
              "Missing down_proj weight for layer {L}, expert {X}",
              "Missing FP8 down_proj weight/scale for layer {L}, expert {X}"},
};
inline constexpr std::array kTextDecoder{
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::gate_up,
                .native = "layers.{L}.mlp.experts.gate_and_up_projs",
                .grouped = "[model.]layers.{L}.mlp.experts.gate_up_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kTextGateUp,
                .without_source = ExpertForm::split},
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::down,
                .native = "layers.{L}.mlp.experts.down_projs",
                .grouped = "[model.]layers.{L}.mlp.experts.down_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kTextDown,
                .without_source = ExpertForm::split},
};

/// Experts of the multi-token prediction: rules 3, 5, 35, 36, 41, 45.
inline constexpr std::array kMtpGateUp{
    SplitRule{"mtp.layers.{L}.mlp.experts.{X}.gate_proj.weight",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}"},
    SplitRule{"mtp.layers.{L}.mlp.experts.{X}.up_proj.weight",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}"},
};
inline constexpr std::array kMtpDown{
    SplitRule{"mtp.layers.{L}.mlp.experts.{X}.down_proj.weight",
              "Missing down MTP expert weight for layer {L}, expert {X}",
              "Missing down MTP expert weight for layer {L}, expert {X}"},
};
constexpr StackedRule mtp_gate_up(ExpertForm without_source) {
  return {.stack = Stack::mtp,
          .projection = Projection::gate_up,
          .native = "mtp.layers.{L}.mlp.experts.gate_and_up_projs",
          .grouped = "mtp.layers.{L}.mlp.experts.gate_up_proj",
          .hub = Layout::swapped,
          .transformers = Layout::swapped,
          .split = kMtpGateUp,
          .without_source = without_source};
}
constexpr StackedRule mtp_down(ExpertForm without_source) {
  return {.stack = Stack::mtp,
          .projection = Projection::down,
          .native = "mtp.layers.{L}.mlp.experts.down_projs",
          .grouped = "mtp.layers.{L}.mlp.experts.down_proj",
          .hub = Layout::swapped,
          .transformers = Layout::swapped,
          .split = kMtpDown,
          .without_source = without_source};
}

/// Rule 34
inline constexpr std::array kMtpNames{
    Rename{"mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
    Rename{"mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
    Rename{"mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"},
    Rename{"mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"},
};

/// Rules 38, 47. The dots on both sides leave `shared_expert_gate` alone.
inline constexpr std::array kSharedExperts{Rename{".mlp.shared_expert.", ".mlp.shared_experts."}};

/// What stands outside the prefix: rules 22, 38, 43, 49.
inline constexpr std::array<std::string_view, 1> kHead{"lm_head."};
inline constexpr std::array<std::string_view, 2> kMtpAndHead{"mtp.", "lm_head."};

/// Gated delta nets: rules 53-55.
inline constexpr std::array<std::string_view, 2> kFp32Names{"A_log", "dt_bias"};
inline constexpr Fp32Holder kFp32{.module = ".linear_attn.", .names = kFp32Names, .segment = "_fp32_params."};

}  // namespace rankslice::qwen
