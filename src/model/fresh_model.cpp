#include "model/fresh_model.hpp"

#include <utility>

#include "model/exported_form.hpp"
#include "model/hf_tensors.hpp"
#include "model/map_tensors.hpp"

namespace rankslice {

namespace {

class FreshModel {
 public:
  FreshModel(Family const& family, FreshOptions const& options) : table_(family.keys), options_(options) {}

  void add(NativeTensor const& native) {
    auto const stacked = find_stacked(table_, native.fqn);
    auto& parameter = model_.parameters.emplace_back();
    parameter.fqn = native.fqn;
    auto const hf_dtype = options_.hf_dtypes.find(native.fqn);
    parameter.dtype = native.dtype;
    auto const as_held = hf_dtype == options_.hf_dtypes.end() || !is_fp32_held(table_, native.fqn);
    parameter.hf_dtype = as_held ? native.dtype : hf_dtype->second;
    parameter.shape = native.shape;
    parameter.stacked_experts = stacked.has_value();
    if (!stacked) return add_dense();
    auto const& rule = *stacked->rule;
    auto const& asked = rule.stack == Stack::mtp ? options_.mtp_experts : options_.decoder_experts;
    auto const held = asked ? std::optional(HeldExperts{.form = *asked}) : std::nullopt;
    auto const form = exported_form(table_, rule.stack, held);
    form == ExpertForm::split ? add_split(native, rule) : add_grouped(native, rule);
  }

  [[nodiscard]] Model take() { return std::move(model_); }

 private:
  void add_dense() {
    auto& parameter = model_.parameters.back();
    append({.key = to_hf(table_, parameter.fqn), .shape = parameter.shape});
  }

  void add_grouped(NativeTensor const& native, StackedRule const& rule) {
    require_stackable(native, rule.projection == Projection::gate_up ? 2 : 1);
    auto& parameter = model_.parameters.back();
    auto const transformers = options_.expert_layout == ExpertLayout::transformers;
    parameter.layout = rule.grouped_layout(transformers ? ExpertLayout::transformers : ExpertLayout::hub);
    append(grouped_tensor(to_hf(table_, native.fqn), native.shape, parameter.layout));
  }

  void add_split(NativeTensor const& native, StackedRule const& rule) {
    require_stackable(native, rule.split.size());
    model_.parameters.back().layout = Layout::swapped;
    for (auto& tensor : split_tensors(rule, native.fqn, native.shape, {0, native.shape[0]})) append(std::move(tensor));
  }

  void append(HfTensor tensor) {
    auto& parameter = model_.parameters.back();
    keys_.add(tensor.key, parameter.fqn);
    parameter.tensors.push_back(static_cast<std::uint32_t>(model_.tensors.size()));
    tensor.dtype = parameter.hf_dtype;
    tensor.parameter = static_cast<std::uint32_t>(model_.parameters.size() - 1);
    model_.tensors.push_back(std::move(tensor));
  }

  KeyTable const& table_;
  FreshOptions options_;
  DistinctKeys keys_;
  Model model_;
};

}  // namespace

Model make_fresh_model(Family const& family, std::vector<NativeTensor> const& tensors, FreshOptions const& options) {
  FreshModel fresh(family, options);
  for (auto const& tensor : tensors) fresh.add(tensor);
  auto model = fresh.take();
  check_way_back(family, model);
  return model;
}

}  // namespace rankslice
