#include "model/qwen3_5_moe.hpp"

#include "model/expert_checks.hpp"
#include "model/key_table.hpp"

namespace rankslice {

namespace {

constexpr std::array kGateUpAxes{StackedAxis::experts, StackedAxis::twice_intermediate, StackedAxis::hidden};
constexpr std::array kDownAxes{StackedAxis::experts, StackedAxis::hidden, StackedAxis::intermediate};

// Rules 3, 5, 35, 46
constexpr std::array kStacked{
    StackedRule{.stack = Stack::decoder,
                .hf = "[model.][language_model.]layers.{L}.mlp.experts.gate_up_proj",
                .native = "{prefix}language_model.layers.{L}.mlp.experts.gate_and_up_projs",
                .layout = Layout::swapped,
                .hf_axes = kGateUpAxes},
    StackedRule{.stack = Stack::decoder,
                .hf = "[model.][language_model.]layers.{L}.mlp.experts.down_proj",
                .native = "{prefix}language_model.layers.{L}.mlp.experts.down_projs",
                .layout = Layout::swapped,
                .hf_axes = kDownAxes},
    StackedRule{.stack = Stack::mtp,
                .hf = "mtp.layers.{L}.mlp.experts.gate_up_proj",
                .native = "mtp.layers.{L}.mlp.experts.gate_and_up_projs",
                .layout = Layout::swapped,
                .hf_axes = kGateUpAxes},
    StackedRule{.stack = Stack::mtp,
                .hf = "mtp.layers.{L}.mlp.experts.down_proj",
                .native = "mtp.layers.{L}.mlp.experts.down_projs",
                .layout = Layout::swapped,
                .hf_axes = kDownAxes},
};

constexpr std::string_view kPerExpert =
    "per-expert checkpoints are not supported in this version; grouped ones (…experts.gate_up_proj) are";

// Rules 33, 36
constexpr std::array kRefused{
    RefusedRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.gate_proj.weight[_scale_inv]", kPerExpert},
    RefusedRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.up_proj.weight[_scale_inv]", kPerExpert},
    RefusedRule{"[model.][language_model.]layers.{L}.mlp.experts.{X}.down_proj.weight[_scale_inv]", kPerExpert},
    RefusedRule{"mtp.layers.{L}.mlp.experts.{X}.gate_proj.weight[_scale_inv]", kPerExpert},
    RefusedRule{"mtp.layers.{L}.mlp.experts.{X}.up_proj.weight[_scale_inv]", kPerExpert},
    RefusedRule{"mtp.layers.{L}.mlp.experts.{X}.down_proj.weight[_scale_inv]", kPerExpert},
};

// Rule 34
constexpr std::array kExact{
    Rename{"mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
    Rename{"mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
    Rename{"mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"},
    Rename{"mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"},
};

// Rules 38, 47. The dots on both sides leave `shared_expert_gate` alone.
constexpr std::array kParts{Rename{".mlp.shared_expert.", ".mlp.shared_experts."}};

// Rules 38, 43, 49
constexpr std::array<std::string_view, 2> kTopLevel{"mtp.", "lm_head."};

// Rules 53-55
constexpr std::array<std::string_view, 2> kFp32Names{"A_log", "dt_bias"};

constexpr KeyTable kTable{
    .refused = kRefused,
    .exact = kExact,
    .stacked = kStacked,
    .scale_suffix = "_scale_inv",
    .parts = kParts,
    .top_level = kTopLevel,
    .fp32 = {.module = ".linear_attn.", .names = kFp32Names, .segment = "_fp32_params."},
};

class Qwen3_5Moe final : public Family {
 public:
  [[nodiscard]] std::string_view name() const override { return "qwen3_5_moe"; }
  [[nodiscard]] bool handles(std::string_view model_type) const override {
    return model_type == "qwen3_5_moe" || model_type == "qwen3_5_moe_text";
  }
  [[nodiscard]] KeyMapping from_hf(std::string_view hf_key, std::string_view prefix) const override {
    return map_from_hf(kTable, hf_key, prefix);
  }
  [[nodiscard]] KeyMapping to_hf(std::string_view fqn) const override { return map_to_hf(kTable, fqn); }
  [[nodiscard]] std::string_view prefix(std::span<CatalogTensor const> tensors) const override {
    return find_prefix(kTable, tensors);
  }
  [[nodiscard]] DType dtype_on_load(std::string_view hf_key, DType hf_dtype) const override {
    return find_dtype_on_load(kTable, hf_key, hf_dtype);
  }
  void check(TensorCatalog const& catalog, Model const& model, ModelConfig const& config) const override {
    check_unquantised(catalog, model, config);
    check_expert_shapes(kTable, catalog, config);
    check_expert_layers(kTable, catalog, model, config);
  }
};

}  // namespace

Family const& qwen3_5_moe() {
  static Qwen3_5Moe const family;
  return family;
}

}  // namespace rankslice
