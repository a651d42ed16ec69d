#include "model/converted_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "rankslice/error.hpp"

#include "model/exported_form.hpp"
#include "model/hf_tensors.hpp"
#include "model/key_pattern.hpp"

namespace rankslice {

namespace {

class ConvertedModel {
 public:
  ConvertedModel(KeyTable const& table, Model const& source, Fp32HeldDtype fp32_held)
      : table_(table),
        source_(source),
        fp32_held_(fp32_held),
        decoder_form_(exported_form(table, Stack::decoder, find_held_experts(source, Stack::decoder))) {
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
    if (fp32_held_ == Fp32HeldDtype::of_source) return parameter.hf_dtype;
    auto const upcast = find_dtype_on_load(table_, key, parameter.hf_dtype);
    if (upcast == parameter.dtype || upcast == parameter.hf_dtype) return upcast;
    throw PlanError(fmt::format("{}: can be exported in {} when it is held so, and is held in {}", parameter.fqn,
                                name(upcast), name(parameter.dtype)),
                    parameter.fqn);
  }

  /// The key of the grouped tensor that takes in a tensor of split decoder experts; nothing for what stays as it is.
  [[nodiscard]] std::optional<StackedKey> grouping_of(HfTensor const& tensor) const {
    if (decoder_form_ == ExpertForm::split) return std::nullopt;
    auto const stacked = match_stacked(table_, tensor.key);
    return stacked && stacked->split && stacked->rule->stack == Stack::decoder ? stacked : std::nullopt;
  }

  /// Where a tensor of the source goes.
  std::uint32_t add(HfTensor tensor) {
    auto& parameter = model_.parameters[tensor.parameter];
    auto const grouping = grouping_of(tensor);
    if (!grouping) {
      tensor.dtype = parameter.hf_dtype;
      tensor.scales.reset();
      return append(std::move(tensor));
    }
    if (parameter.tensors.empty()) parameter.tensors.push_back(append(grouped(tensor.parameter, *grouping)));
    return parameter.tensors.front();
  }

  HfTensor grouped(std::uint32_t index, StackedKey const& split) {
    auto& parameter = model_.parameters[index];
    parameter.layout = split.rule->hub;
    auto key = fmt::format("{}{}", split.up_to_layer, after_layer(split.rule->grouped));
    auto tensor = grouped_tensor(std::move(key), parameter.shape, parameter.layout);
    tensor.dtype = parameter.hf_dtype;
    tensor.parameter = index;
    return tensor;
  }

  std::uint32_t append(HfTensor tensor) {
    keys_.add(tensor.key, model_.parameters[tensor.parameter].fqn);
    model_.tensors.push_back(std::move(tensor));
    return static_cast<std::uint32_t>(model_.tensors.size() - 1);
  }

  KeyTable const& table_;
  Model const& source_;
  Fp32HeldDtype fp32_held_;
  ExpertForm decoder_form_;
  Model model_;
  DistinctKeys keys_;
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
