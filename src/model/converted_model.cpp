#include "model/converted_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "rankslice/error.hpp"

#include "model/key_pattern.hpp"

namespace rankslice {

namespace {

/// A key as its source spells it, up to and with the number of the layer.
std::string_view up_to_layer(std::string_view split_key, StackedRule const& rule) {
  auto const places = match_key(rule.split.front().hf, split_key);
  return {split_key.data(), places->layer.data() + places->layer.size()};
}

class ConvertedModel {
 public:
  ConvertedModel(KeyTable const& table, Model const& source, Fp32HeldDtype fp32_held)
      : table_(table), source_(source), fp32_held_(fp32_held) {
    for (auto const& parameter : source.parameters) {
      auto& converted = model_.parameters.emplace_back(parameter);
      converted.hf_dtype = dtype_of(parameter);
      converted.scale_bytes = 0;
      converted.tensors.clear();
    }
  }

  /// Whether a tensor of the source is of another dtype.
  [[nodiscard]] bool differs() const {
    return !std::ranges::equal(model_.parameters, source_.parameters, {}, &Parameter::hf_dtype, &Parameter::hf_dtype);
  }

  [[nodiscard]] Model make() && {
    std::vector<std::uint32_t> place(source_.tensors.size());
    for (std::size_t i = 0; i < source_.tensors.size(); ++i) {
      if (!source_.tensors[i].is_scales) place[i] = add(source_.tensors[i]);
    }
    for (std::size_t i = 0; i < source_.parameters.size(); ++i) {
      auto& tensors = model_.parameters[i].tensors;
      if (!tensors.empty()) continue;  // grouped
      for (auto const tensor : source_.parameters[i].tensors) tensors.push_back(place[tensor]);
    }
    return std::move(model_);
  }

 private:
  [[nodiscard]] DType dtype_of(Parameter const& parameter) const {
    auto const& key = source_.key_of(parameter);
    if (!is_fp32_held(table_, key)) return parameter.dtype;
    return fp32_held_ == Fp32HeldDtype::f32 ? find_dtype_on_load(table_, key, parameter.hf_dtype) : parameter.hf_dtype;
  }

  /// The rule by which the experts of a tensor become one grouped tensor; null when they stay as they are.
  [[nodiscard]] StackedRule const* grouping_of(HfTensor const& tensor) const {
    auto const& parameter = source_.parameters[tensor.parameter];
    auto const is_split = parameter.stacked_experts && tensor.shape.size() < parameter.shape.size();
    if (!is_split || !tensor.scales) return nullptr;
    auto const stacked = find_stacked(table_, parameter.fqn);
    auto const released = stacked && stacked->rule->without_source == ExpertForm::grouped;
    return released && stacked->rule->stack == Stack::decoder ? stacked->rule : nullptr;
  }

  /// Where a tensor of the source goes.
  std::uint32_t add(HfTensor tensor) {
    auto& parameter = model_.parameters[tensor.parameter];
    auto const* const rule = grouping_of(tensor);
    if (rule == nullptr) {
      tensor.dtype = parameter.hf_dtype;
      tensor.scales.reset();
      return append(std::move(tensor));
    }
    if (parameter.tensors.empty()) parameter.tensors.push_back(append(grouped(tensor.parameter, *rule)));
    return parameter.tensors.front();
  }

  HfTensor grouped(std::uint32_t index, StackedRule const& rule) {
    auto& parameter = model_.parameters[index];
    parameter.layout = rule.hub;
    auto shape = parameter.shape;
    if (parameter.layout == Layout::swapped) std::swap(shape[1], shape[2]);
    auto const& split_key = source_.key_of(source_.parameters[index]);
    return {.key = fmt::format("{}{}", up_to_layer(split_key, rule), after_layer(rule.grouped)),
            .dtype = parameter.hf_dtype,
            .shape = std::move(shape),
            .parameter = index,
            .experts = {0, parameter.part_count()},
            .columns = {0, parameter.columns()}};
  }

  std::uint32_t append(HfTensor tensor) {
    if (!keys_.insert(tensor.key).second) {
      auto const& fqn = model_.parameters[tensor.parameter].fqn;
      throw FormatError(fmt::format("{}: becomes {}, as another tensor does", fqn, tensor.key), {}, fqn);
    }
    model_.tensors.push_back(std::move(tensor));
    return static_cast<std::uint32_t>(model_.tensors.size() - 1);
  }

  KeyTable const& table_;
  Model const& source_;
  Fp32HeldDtype fp32_held_;
  Model model_;
  std::unordered_set<std::string> keys_;
};

}  // namespace

std::optional<Model> make_converted_model(Family const& family, Model const& source, Fp32HeldDtype fp32_held) {
  ConvertedModel converted(family.keys, source, fp32_held);
  if (!converted.differs()) return std::nullopt;
  return std::move(converted).make();
}

std::optional<DType> converted_dtype(Family const& family, Model const& source) {
  auto const is_converted = [&](Parameter const& parameter) {
    return parameter.converted() && !is_fp32_held(family.keys, source.key_of(parameter));
  };
  auto const found = std::ranges::find_if(source.parameters, is_converted);
  return found == source.parameters.end() ? std::nullopt : std::optional(found->dtype);
}

}  // namespace rankslice
