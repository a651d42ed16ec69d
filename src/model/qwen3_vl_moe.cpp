#include "model/qwen3_vl_moe.hpp"

#include <array>

#include "model/qwen_rules.hpp"
#include "model/text_only.hpp"

namespace rankslice {

namespace {

// Rules 2, 5a, 20, 24
constexpr std::array kStacked{
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::gate_up,
                .native = "language_model.layers.{L}.mlp.experts.gate_and_up_projs",
                .grouped = "[model.]language_model.layers.{L}.mlp.experts.gate_up_proj",
                .hub = Layout::same,
                .transformers = Layout::swapped,
                .split = {}},
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::down,
                .native = "language_model.layers.{L}.mlp.experts.down_projs",
                .grouped = "[model.]language_model.layers.{L}.mlp.experts.down_proj",
                .hub = Layout::same,
                .transformers = Layout::swapped,
                .split = {}},
};

constexpr std::string_view kPerExpert =
    "this family's experts are grouped (…experts.gate_up_proj), not in tensors each";

constexpr std::array kRefused{
    RefusedRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.gate_proj.weight", kPerExpert},
    RefusedRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.up_proj.weight", kPerExpert},
    RefusedRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.down_proj.weight", kPerExpert},
};

constexpr std::array<std::string_view, 2> kModelTypes{"qwen3_vl_moe", "qwen3_vl_moe_text"};

constexpr KeyTable kKeys{.refused = kRefused,
                         .exact = {},
                         .stacked = kStacked,
                         .scale_suffix = "_scale_inv",
                         .parts = {},
                         .top_level = qwen::kHead,
                         .misplaced = {},  // `model.lm_head.` stays as it is (rule 23)
                         .fp32 = {}};

// Rule 43; a text model's keys have no `language_model.` either
constexpr std::array kTextStacked{
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::gate_up,
                .native = "layers.{L}.mlp.experts.gate_and_up_projs",
                .grouped = "[model.][language_model.]layers.{L}.mlp.experts.gate_up_proj",
                .hub = Layout::same,
                .transformers = Layout::swapped,
                .split = {}},
    StackedRule{.stack = Stack::decoder,
                .projection = Projection::down,
                .native = "layers.{L}.mlp.experts.down_projs",
                .grouped = "[model.][language_model.]layers.{L}.mlp.experts.down_proj",
                .hub = Layout::same,
                .transformers = Layout::swapped,
                .split = {}},
};
constexpr std::array<std::string_view, 1> kTextModelTypes{"qwen3_vl_moe_text"};
constexpr Family kTextOnly{
    .name = "qwen3_vl_moe_text", .model_types = kTextModelTypes, .keys = text_only_keys(kKeys, kTextStacked)};

constexpr Family kFamily{.name = "qwen3_vl_moe", .model_types = kModelTypes, .keys = kKeys, .text_only = &kTextOnly};

}  // namespace

Family const& qwen3_vl_moe() { return kFamily; }

}  // namespace rankslice
