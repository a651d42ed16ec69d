#include "model/qwen3_moe.hpp"

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
};

constexpr std::array<std::string_view, 1> kTopLevel{"lm_head."};

constexpr std::array<std::string_view, 1> kModelTypes{"qwen3_moe"};

constexpr Family kFamily{.name = "qwen3_moe",
                         .model_types = kModelTypes,
                         .keys = {.refused = {},
                                  .exact = {},
                                  .stacked = kStacked,
                                  .scale_suffix = "_scale_inv",
                                  .parts = {},
                                  .top_level = kTopLevel,
                                  .misplaced = kTopLevel,
                                  .fp32 = {}}};

}  // namespace

Family const& qwen3_moe() { return kFamily; }

}  // namespace rankslice
