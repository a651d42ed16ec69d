#include "model/qwen3_next.hpp"

#include <array>

namespace rankslice {

namespace {

// As the Hub has them, and transformers writes them by default
constexpr std::array kGateUp{
    SplitRule{"[model.]layers.{L}.mlp.experts.{X}.gate_proj.weight",
              "Missing gate_proj weight for layer {L}, expert {X}",
              "Missing FP8 gate_proj weight/scale for layer {L}, expert {X}"},
    SplitRule{"[model.]layers.{L}.mlp.experts.{X}.up_proj.weight", "Missing up_proj weight for layer {L}, expert {X}",
              "Missing FP8 up_proj weight/scale for layer {L}, expert {X}"},
};
constexpr std::array kDown{
    SplitRule{"[model.]layers.{L}.mlp.experts.{X}.down_proj.weight",
              "Missing down_proj weight for layer {L}, expert {X}",
              "Missing FP8 down_proj weight/scale for layer {L}, expert {X}"},
};
constexpr std::array kMtpGateUp{
    SplitRule{"mtp.layers.{L}.mlp.experts.{X}.gate_proj.weight",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}"},
    SplitRule{"mtp.layers.{L}.mlp.experts.{X}.up_proj.weight",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}",
              "Missing gate/up MTP expert weights for layer {L}, expert {X}"},
};
constexpr std::array kMtpDown{
    SplitRule{"mtp.layers.{L}.mlp.experts.{X}.down_proj.weight",
              "Missing down MTP expert weight for layer {L}, expert {X}",
              "Missing down MTP expert weight for layer {L}, expert {X}"},
};

// Grouped as transformers writes them with save_original_format=False: [E, 2I, H] and [E, H, I]
constexpr std::array kStacked{
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::gate_up,
                .native = "layers.{L}.mlp.experts.gate_and_up_projs",
                .grouped = "[model.]layers.{L}.mlp.experts.gate_up_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kGateUp,
                .without_source = ExpertForm::split},
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::down,
                .native = "layers.{L}.mlp.experts.down_projs",
                .grouped = "[model.]layers.{L}.mlp.experts.down_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kDown,
                .without_source = ExpertForm::split},
    StackedRule{.stack = Stack::mtp,
                .projection = Projection::gate_up,
                .native = "mtp.layers.{L}.mlp.experts.gate_and_up_projs",
                .grouped = "mtp.layers.{L}.mlp.experts.gate_up_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kMtpGateUp,
                .without_source = ExpertForm::split},
    StackedRule{.stack = Stack::mtp,
                .projection = Projection::down,
                .native = "mtp.layers.{L}.mlp.experts.down_projs",
                .grouped = "mtp.layers.{L}.mlp.experts.down_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kMtpDown,
                .without_source = ExpertForm::split},
};

// The MTP's names in training are those of rule 34.
constexpr std::array kExact{
    Rename{"mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
    Rename{"mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
    Rename{"mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"},
    Rename{"mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"},
};

// Rules 38, 47. The dots on both sides leave `shared_expert_gate` alone.
constexpr std::array kParts{Rename{".mlp.shared_expert.", ".mlp.shared_experts."}};

constexpr std::array<std::string_view, 2> kTopLevel{"mtp.", "lm_head."};

// Rules 53-55
constexpr std::array<std::string_view, 2> kFp32Names{"A_log", "dt_bias"};

constexpr std::array<std::string_view, 1> kModelTypes{"qwen3_next"};

constexpr Family kFamily{
    .name = "qwen3_next",
    .model_types = kModelTypes,
    .keys = {.refused = {},
             .exact = kExact,
             .stacked = kStacked,
             .scale_suffix = "_scale_inv",
             .parts = kParts,
             .top_level = kTopLevel,
             .misplaced = kTopLevel,
             .fp32 = {.module = ".linear_attn.", .names = kFp32Names, .segment = "_fp32_params."}}};

}  // namespace

Family const& qwen3_next() { return kFamily; }

}  // namespace rankslice
