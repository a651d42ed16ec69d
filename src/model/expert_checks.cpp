#include "model/expert_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "rankslice/error.hpp"

#include "model/quantised.hpp"
#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

// A length with the place that demands it.
struct Length {
  std::uint64_t value = 0;
  std::string source;
};

struct ExpertSizes {
  Length experts;
  Length hidden;
  Length intermediate;

  [[nodiscard]] std::uint64_t along(StackedAxis axis) const {
    switch (axis) {
      case StackedAxis::experts:
        return experts.value;
      case StackedAxis::hidden:
        return hidden.value;
      case StackedAxis::intermediate:
        return intermediate.value;
      case StackedAxis::twice_intermediate:
        return 2 * intermediate.value;
    }
    return 0;
  }
};

std::string_view symbol(StackedAxis axis) {
  switch (axis) {
    case StackedAxis::experts:
      return "E";
    case StackedAxis::hidden:
      return "H";
    case StackedAxis::intermediate:
      return "I";
    case StackedAxis::twice_intermediate:
      return "2I";
  }
  return "";
}

void learn(Length& length, std::uint64_t value, std::string const& source) {
  if (length.value == 0) length = {value, source};
}

void learn(ExpertSizes& sizes, StackedRule const& rule, CatalogTensor const& tensor) {
  for (std::size_t i = 0; i < rule.hf_axes.size(); ++i) {
    switch (rule.hf_axes[i]) {
      case StackedAxis::experts:
        learn(sizes.experts, tensor.shape[i], tensor.name);
        break;
      case StackedAxis::hidden:
        learn(sizes.hidden, tensor.shape[i], tensor.name);
        break;
      case StackedAxis::intermediate:
        learn(sizes.intermediate, tensor.shape[i], tensor.name);
        break;
      case StackedAxis::twice_intermediate:
        learn(sizes.intermediate, tensor.shape[i] / 2, tensor.name);
        break;
    }
  }
}

void check_shape(ExpertSizes const& sizes, StackedRule const& rule, TensorCatalog const& catalog,
                 CatalogTensor const& tensor) {
  auto const& axes = rule.hf_axes;
  Shape const expected{sizes.along(axes[0]), sizes.along(axes[1]), sizes.along(axes[2])};
  if (tensor.shape == expected && element_count(expected) != 0) return;
  throw tensor_error(
      catalog, tensor,
      fmt::format("expected the shape {} = [{}, {}, {}], found {}; E is {} by {}, H is {} by {}, I is {} by {}",
                  to_string(expected), symbol(axes[0]), symbol(axes[1]), symbol(axes[2]), to_string(tensor.shape),
                  sizes.experts.value, sizes.experts.source, sizes.hidden.value, sizes.hidden.source,
                  sizes.intermediate.value, sizes.intermediate.source));
}

// Knows which stacked tensors there are, and says what is wrong when one is not.
class ExpertLayers {
 public:
  ExpertLayers(KeyTable const& table, TensorCatalog const& catalog, Model const& model)
      : table_(table), prefix_(find_prefix(table, catalog.tensors)) {
    for (auto const& parameter : model.parameters) fqns_.insert(parameter.fqn);
  }

  void demand(Stack stack, std::string_view layer, std::string const& reason) const {
    for (auto const& rule : table_.stacked) {
      if (rule.stack != stack) continue;
      auto const fqn = fill_key(rule.native, {.prefix = prefix_, .layer = layer, .expert = {}});
      if (fqns_.contains(fqn)) continue;
      auto const missing = map_to_hf(table_, fqn).name;
      throw FormatError(fmt::format("{}: missing from the checkpoint: {}", missing, reason), {}, missing);
    }
  }

 private:
  KeyTable const& table_;
  std::string_view prefix_;
  std::unordered_set<std::string_view> fqns_;
};

void demand_announced_layers(ExpertLayers const& layers, Model const& model, ModelConfig const& config) {
  std::unordered_set<std::uint64_t> const dense(config.dense_layers.begin(), config.dense_layers.end());
  auto const announced = fmt::format("config.json has num_hidden_layers = {}", config.layers);
  for (std::uint64_t layer = 0; layer < config.layers; ++layer) {
    if (!dense.contains(layer)) layers.demand(Stack::decoder, std::to_string(layer), announced);
  }
  auto const is_mtp = [](Parameter const& parameter) { return parameter.fqn.starts_with("mtp."); };
  if (std::ranges::none_of(model.parameters, is_mtp)) return;
  auto const mtp_announced = fmt::format("config.json has mtp_num_hidden_layers = {}", config.mtp_layers);
  for (std::uint64_t layer = 0; layer < config.mtp_layers; ++layer) {
    layers.demand(Stack::mtp, std::to_string(layer), mtp_announced);
  }
}

}  // namespace

void check_unquantised(TensorCatalog const& catalog, Model const& model, ModelConfig const& config) {
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    auto const& tensor = model.tensors[i];
    auto const weight = model.parameters[tensor.parameter].stacked_experts || tensor.key.ends_with(".weight");
    if (!weight || !is_quantised(tensor.dtype)) continue;
    throw tensor_error(
        catalog, catalog.tensors[i],
        fmt::format("has dtype {}: quantised checkpoints are not supported in this version", name(tensor.dtype)));
  }
  if (!config.quant_method.empty()) {
    throw FormatError(fmt::format("config.json: quantization_config.quant_method is {}: quantised checkpoints are not "
                                  "supported in this version",
                                  config.quant_method),
                      "config.json");
  }
}

void check_expert_shapes(KeyTable const& table, TensorCatalog const& catalog, ModelConfig const& config) {
  ExpertSizes sizes{.experts = {config.experts, "config.json's num_experts"},
                    .hidden = {config.hidden, "config.json's hidden_size"},
                    .intermediate = {config.intermediate, "config.json's moe_intermediate_size"}};
  for (auto const& tensor : catalog.tensors) {
    auto const match = find_stacked(table, tensor.name);
    if (!match) continue;
    learn(sizes, *match->rule, tensor);
    check_shape(sizes, *match->rule, catalog, tensor);
  }
}

void check_expert_layers(KeyTable const& table, TensorCatalog const& catalog, Model const& model,
                         ModelConfig const& config) {
  if (config.partial) return;
  if (std::ranges::none_of(model.parameters, &Parameter::stacked_experts)) {
    throw FormatError(fmt::format("no stacked experts ({}) in the checkpoint", table.stacked.front().hf));
  }
  ExpertLayers const layers(table, catalog, model);
  for (auto const& tensor : model.tensors) {
    auto const match = find_stacked(table, tensor.key);
    if (match) layers.demand(match->rule->stack, match->places.layer, tensor.key + " is there");
  }
  demand_announced_layers(layers, model, config);
}

}  // namespace rankslice
