#include "rankslice/hf_keys.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "rankslice/error.hpp"

#include "core/block_scales.hpp"
#include "model/exported_form.hpp"
#include "model/family.hpp"
#include "model/hf_tensors.hpp"
#include "model/key_pattern.hpp"
#include "model/quantised.hpp"
#include "plan/held.hpp"

namespace rankslice {

namespace {

/// A native tensor and how its checkpoint has it.
struct Source {
  NativeTensor native;
  std::string spelled;                ///< Its FQN, with the prefix that its HF keys have.
  std::string key;                    ///< If it is dense; empty: as the family says.
  StackedRule const* rule = nullptr;  ///< Of stacked experts.
  ExpertKeys experts = ExpertKeys::grouped;
  Layout grouped_layout = Layout::same;  ///< Also of tensors that are only named like grouped experts (rule 46).
};

/// The rule of stacked experts. Also of a text model's, whose names lack `language_model.`; but names before which
/// anything else stands are not experts (rules 45, 50).
StackedRule const* find_experts(KeyTable const& table, std::string_view fqn) {
  auto const is_of = [&](StackedRule const& rule) {
    auto const ending = after_layer(rule.native);
    return fqn.ends_with(ending) && match_key(up_to_layer(rule.grouped), fqn.substr(0, fqn.size() - ending.size()));
  };
  auto const found = std::ranges::find_if(table.stacked, is_of);
  return found == table.stacked.end() ? nullptr : &*found;
}

bool is_floating(DType dtype) {
  return dtype == DType::BF16 || dtype == DType::F16 || dtype == DType::F32 || dtype == DType::F64 ||
         is_quantised(dtype);
}

ExpertKeys keys_of(HeldExperts const& held) {
  if (held.form == ExpertForm::grouped) return ExpertKeys::grouped;
  return held.quantised ? ExpertKeys::split_fp8 : ExpertKeys::split;
}

/// Without block scales.
ExpertKeys exported_keys(KeyTable const& table, StackedRule const& rule, std::optional<HeldExperts> const& held) {
  return keys_of({.form = exported_form(table, rule.stack, held)});
}

/// Rules 53, 55
bool needs_f32(KeyTable const& table, std::string_view name, DType dtype) {
  auto const tracked = find_dtype_on_load(table, name, DType::BF16) == DType::F32;
  return tracked && is_floating(dtype);
}

class Destinations {
 public:
  Destinations(KeyTable const& table, DestinationOptions const& options) : table_(table), options_(options) {}

  void add(Source const& source) {
    if (source.rule == nullptr) return add_dense(source);
    require_stackable(source.native, source.rule->projection == Projection::gate_up ? 2 : 1);
    auto const keys = keys_of(*source.rule, source.experts);
    keys == ExpertKeys::grouped ? add_grouped(source) : add_split(source, keys == ExpertKeys::split_fp8);
  }

  [[nodiscard]] std::vector<LoadDestination> take() { return std::move(taken_); }

 private:
  /// Rules 44, 50: with and without quantization.
  [[nodiscard]] ExpertKeys keys_of(StackedRule const& rule, ExpertKeys held) const {
    if (held == ExpertKeys::grouped || rule.split.empty()) return ExpertKeys::grouped;
    auto const quantised = held == ExpertKeys::split_fp8;
    if (quantised && options_.quantization) return held;
    return exported_keys(table_, rule, HeldExperts{.form = ExpertForm::split, .quantised = quantised});
  }

  /// Rules 46-48, 52
  void add_dense(Source const& source) {
    auto const& native = source.native;
    auto key = source.key.empty() ? to_hf(table_, source.spelled) : source.key;
    auto const dtype = needs_f32(table_, key, native.dtype) ? DType::F32 : native.dtype;
    auto shape = native.shape;
    if (source.grouped_layout == Layout::swapped) {
      if (shape.size() < 3) {
        throw FormatError(fmt::format("{}: becomes {} with axes 1 and 2 exchanged, and has the shape {}", native.fqn,
                                      key, to_string(shape)),
                          {}, native.fqn);
      }
      std::swap(shape[1], shape[2]);
    }
    append({.key = std::move(key),
            .dtype = dtype,
            .shape = shape,
            .offsets = Shape(shape.size(), 0),
            .local_shape = shape,
            .fqn = native.fqn});
  }

  /// Rules 24, 46
  void add_grouped(Source const& source) {
    auto const& native = source.native;
    auto const held = held_part(native);
    auto tensor =
        as_destination(grouped_tensor(to_hf(table_, source.spelled), native.shape, source.grouped_layout), native);
    tensor.offsets = {held.part.begin, held.rows.begin, 0};
    tensor.local_shape = {held.part.size(), held.rows.size(), native.shape[2]};
    if (source.grouped_layout == Layout::swapped) {
      for (auto* const axes : {&tensor.offsets, &tensor.local_shape}) std::swap((*axes)[1], (*axes)[2]);
    }
    append(std::move(tensor));
  }

  /// Rules 45, 50
  void add_split(Source const& source, bool fp8) {
    auto const& native = source.native;
    auto const held = held_part(native);
    auto const of_mtp = source.rule->stack == Stack::mtp;
    for (auto& tensor : split_tensors(*source.rule, source.spelled, native.shape, held.part)) {
      auto weight = as_destination(std::move(tensor), native);
      if (fp8) weight.dtype = DType::F8_E4M3;
      weight.offsets = {0, held.rows.begin};
      weight.local_shape = {weight.shape[0], held.rows.size()};
      if (fp8 && of_mtp) append(sharded_scales(weight));
      append(weight);
      if (fp8 && !of_mtp) append(whole_scales(weight));
    }
  }

  /// What a tensor is of a native one; the rank's part of it stays to be said.
  [[nodiscard]] static LoadDestination as_destination(HfTensor tensor, NativeTensor const& native) {
    LoadDestination destination;
    destination.key = std::move(tensor.key);
    destination.dtype = native.dtype;
    destination.shape = std::move(tensor.shape);
    destination.fqn = native.fqn;
    destination.experts = tensor.experts;
    destination.columns = tensor.columns;
    return destination;
  }

  [[nodiscard]] LoadDestination scales(LoadDestination weight, DType dtype) const {
    weight.key += table_.scale_suffix;
    weight.dtype = dtype;
    weight.shape = scales_shape(weight.shape);
    weight.is_scales = true;
    return weight;
  }

  [[nodiscard]] LoadDestination whole_scales(LoadDestination const& weight) const {
    auto whole = scales(weight, DType::BF16);
    whole.offsets = {0, 0};
    whole.local_shape = whole.shape;
    return whole;
  }

  [[nodiscard]] LoadDestination sharded_scales(LoadDestination const& weight) const {
    if (options_.mesh.ep_shard > 1 && weight.local_shape[1] % kScaleBlock != 0) {
      throw PlanError(fmt::format("{}: MTP FP8 weight shards must align to 128-element block boundaries; of {} each of "
                                  "ep_shard={} ranks has {} columns",
                                  weight.key, to_string(weight.shape), options_.mesh.ep_shard, weight.local_shape[1]),
                      weight.key);
    }
    auto sharded = scales(weight, DType::F32);
    for (auto& offset : sharded.offsets) offset /= kScaleBlock;
    sharded.local_shape = scales_shape(sharded.local_shape);
    return sharded;
  }

  [[nodiscard]] Slice held_part(NativeTensor const& native) const {
    Parameter stacked;
    stacked.fqn = native.fqn;
    stacked.shape = native.shape;
    stacked.stacked_experts = true;
    return held_slice(stacked, options_.mesh, options_.coordinate);
  }

  void append(LoadDestination tensor) {
    if (options_.keys && !options_.keys(tensor.key)) return;
    keys_.add(tensor.key, tensor.fqn);
    taken_.push_back(std::move(tensor));
  }

  KeyTable const& table_;
  DestinationOptions const& options_;
  DistinctKeys keys_;
  std::vector<LoadDestination> taken_;
};

std::optional<ExpertKeys> const& asked_for(HfForms const& forms, StackedRule const& rule) {
  return rule.stack == Stack::mtp ? forms.mtp_experts : forms.decoder_experts;
}

Layout grouped_layout(HfForms const& forms, StackedRule const& rule) {
  return rule.grouped_layout(forms.expert_layout == ExpertLayout::automatic ? ExpertLayout::hub : forms.expert_layout);
}

Source source_of(KeyTable const& table, NativeTensor const& native, HfForms const& forms) {
  Source source{.native = native, .spelled = native.fqn, .key = {}};
  if (auto const* const rule = find_renaming(table, native.fqn)) source.grouped_layout = grouped_layout(forms, *rule);
  source.rule = find_experts(table, native.fqn);
  if (source.rule == nullptr) return source;
  source.experts = asked_for(forms, *source.rule).value_or(exported_keys(table, *source.rule, std::nullopt));
  return source;
}

Source source_of(KeyTable const& table, Model const& model, Parameter const& parameter, HfForms const& forms) {
  Source source{.native = {.fqn = parameter.fqn, .dtype = parameter.dtype, .shape = parameter.shape},
                .spelled = parameter.fqn,
                .key = model.key_of(parameter)};
  auto const& first = model.tensors[parameter.tensors.front()];
  auto const stacked = match_stacked(table, first.key);
  if (!stacked) return source;
  auto const& rule = *stacked->rule;
  auto const form = stacked->split ? ExpertForm::split : ExpertForm::grouped;
  source.spelled = fmt::format("{}{}", stacked->up_to_layer, after_layer(rule.native));
  source.rule = &rule;
  source.experts = asked_for(forms, rule).value_or(keys_of({form, is_quantised(first.dtype)}));
  auto const as_it_is = !stacked->split && forms.expert_layout == ExpertLayout::automatic;
  source.grouped_layout = as_it_is ? parameter.layout : grouped_layout(forms, rule);
  return source;
}

/// What is not said: that without block scales each stack has one form, whichever layers are quantised (rule 26).
HfForms forms_of_export(Model const& model, HfForms forms) {
  auto const fill = [&](std::optional<ExpertKeys>& keys, Stack stack) {
    auto const held = find_held_experts(model, stack);
    if (!keys && held) keys = keys_of(*held);
  };
  fill(forms.decoder_experts, Stack::decoder);
  fill(forms.mtp_experts, Stack::mtp);
  return forms;
}

}  // namespace

std::vector<LoadDestination> load_destinations(std::string_view family, std::vector<NativeTensor> const& tensors,
                                               DestinationOptions const& options) {
  auto const& table = find_family(family, {}).keys;
  Destinations destinations(table, options);
  for (auto const& native : tensors) {
    if (!is_extra_state(native.fqn)) destinations.add(source_of(table, native, options.forms));
  }
  return destinations.take();
}

std::vector<LoadDestination> load_destinations(Checkpoint const& checkpoint, DestinationOptions const& options) {
  auto const& table = find_family(checkpoint.family, {}).keys;
  auto const forms = options.quantization ? options.forms : forms_of_export(checkpoint.model, options.forms);
  Destinations destinations(table, options);
  for (auto const& parameter : checkpoint.model.parameters) {
    if (!is_extra_state(parameter.fqn)) {
      destinations.add(source_of(table, checkpoint.model, parameter, forms));
    }
  }
  return destinations.take();
}

std::vector<std::string> hf_keys(std::string_view family, std::vector<NativeTensor> const& tensors,
                                 HfForms const& forms) {
  std::vector<std::string> keys;
  for (auto& tensor : load_destinations(family, tensors, {.forms = forms})) keys.push_back(std::move(tensor.key));
  return keys;
}

std::map<std::string, DType> forced_hf_dtypes(std::string_view family, std::vector<NativeTensor> const& tensors) {
  auto const& table = find_family(family, {}).keys;
  std::map<std::string, DType> forced;
  for (auto const& tensor : tensors) {
    if (needs_f32(table, tensor.fqn, tensor.dtype)) forced.emplace(tensor.fqn, DType::F32);
  }
  return forced;
}

}  // namespace rankslice
