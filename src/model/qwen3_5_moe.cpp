#include "model/qwen3_5_moe.hpp"

#include <array>

#include "model/qwen_rules.hpp"
#include "model/text_only.hpp"

namespace rankslice {

namespace {

// Rules 4, 5a, 33, 40
constexpr std::array kGateUp{
    SplitRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.gate_proj.weight",
              "Missing gate_proj weight for layer {L}, expert {X}",
              "Missing FP8 gate_proj weight/scale for layer {L}, expert {X}"},
    SplitRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.up_proj.weight",
              "Missing up_proj weight for layer {L}, expert {X}",
              "Missing FP8 up_proj weight/scale for layer {L}, expert {X}"},
};
constexpr std::array kDown{
    SplitRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.down_proj.weight",
              "Missing down_proj weight for layer {L}, expert {X}",
              "Missing FP8 down_proj weight/scale for layer {L}, expert {X}"},
};

// Rules 3, 5, 35, 46
constexpr std::array kStacked{
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::gate_up,
                .native = "language_model.layers.{L}.mlp.experts.gate_and_up_projs",
                .grouped = "[model.][language_model.]layers.{L}.mlp.experts.gate_up_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kGateUp},
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::down,
                .native = "language_model.layers.{L}.mlp.experts.down_projs",
                .grouped = "[model.][language_model.]layers.{L}.mlp.experts.down_proj",
                .hub = Layout::swapped,
                .transformers = Layout::swapped,
                .split = kDown},
    qwen::mtp_gate_up(ExpertForm::grouped),
    qwen::mtp_down(ExpertForm::grouped),
};

constexpr std::array<std::string_view, 2> kModelTypes{"qwen3_5_moe", "qwen3_5_moe_text"};

constexpr KeyTable kKeys{.refused = {},
                         .exact = qwen::kMtpNames,
                         .stacked = kStacked,
                         .scale_suffix = "_scale_inv",
                         .parts = qwen::kSharedExperts,
                         .top_level = qwen::kMtpAndHead,
                         .misplaced = qwen::kMtpAndHead,
                         .fp32 = qwen::kFp32};

// Rule 43
constexpr std::array<std::string_view, 1> kTextModelTypes{"qwen3_5_moe_text"};
constexpr auto kTextStacked = without_language_model(kStacked);
constexpr Family kTextOnly{
    .name = "qwen3_5_moe_text", .model_types = kTextModelTypes, .keys = text_only_keys(kKeys, kTextStacked)};

constexpr Family kFamily{.name = "qwen3_5_moe", .model_types = kModelTypes, .keys = kKeys, .text_only = &kTextOnly};

}  // namespace

Family const& qwen3_5_moe() { return kFamily; }

}  // namespace rankslice
