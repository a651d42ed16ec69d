#include "model/fresh_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "rankslice/error.hpp"

#include "model/exported_form.hpp"
#include "model/map_tensors.hpp"

namespace rankslice {

namespace {

FormatError refusal(std::string const& fqn, std::string const& reason) {
  return FormatError(fmt::format("{}: {}", fqn, reason), {}, fqn);
}

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
    auto shape = native.shape;
    if (parameter.layout == Layout::swapped) std::swap(shape[1], shape[2]);
    append({.key = to_hf(table_, native.fqn),
            .shape = std::move(shape),
            .experts = {0, parameter.part_count()},
            .columns = {0, parameter.columns()}});
  }

  void add_split(NativeTensor const& native, StackedRule const& rule) {
    auto const matrices = rule.split.size();
    require_stackable(native, matrices);
    auto& parameter = model_.parameters.back();
    parameter.layout = Layout::swapped;
    auto const width = native.shape[2] / matrices;
    for (std::uint64_t expert = 0; expert < native.shape[0]; ++expert) {
      for (std::uint64_t matrix = 0; matrix < matrices; ++matrix) {
        append({.key = split_key(rule, native.fqn, {expert, matrix}),
                .shape = {width, native.shape[1]},
                .experts = {expert, expert + 1},
                .columns = {matrix * width, (matrix + 1) * width}});
      }
    }
  }

  void append(HfTensor tensor) {
    auto& parameter = model_.parameters.back();
    parameter.tensors.push_back(static_cast<std::uint32_t>(model_.tensors.size()));
    tensor.dtype = parameter.hf_dtype;
    tensor.parameter = static_cast<std::uint32_t>(model_.parameters.size() - 1);
    model_.tensors.push_back(std::move(tensor));
  }

  KeyTable const& table_;
  FreshOptions options_;
  Model model_;
};

void check_collisions(Model const& model) {
  std::unordered_map<std::string_view, std::string_view> fqn_of;
  for (auto const& tensor : model.tensors) {
    auto const& fqn = model.parameters[tensor.parameter].fqn;
    auto const [earlier, is_new] = fqn_of.emplace(tensor.key, fqn);
    if (is_new) continue;
    throw refusal(fqn, fmt::format("becomes {}, as {} does", tensor.key, earlier->second));
  }
}

}  // namespace

void require_stackable(NativeTensor const& native, std::uint64_t matrices) {
  auto const is_filled = std::ranges::find(native.shape, 0U) == native.shape.end();
  if (native.shape.size() == 3 && is_filled && bits(native.dtype) % 8 == 0 && native.shape[2] % matrices == 0) return;
  throw refusal(native.fqn,
                fmt::format("stacked experts need 3 axes, none of them 0{}, and a dtype of whole bytes, found {} {}",
                            matrices == 1 ? "" : ", the last even", name(native.dtype), to_string(native.shape)));
}

Model make_fresh_model(Family const& family, std::vector<NativeTensor> const& tensors, FreshOptions const& options) {
  FreshModel fresh(family, options);
  for (auto const& tensor : tensors) fresh.add(tensor);
  auto model = fresh.take();
  check_collisions(model);
  check_way_back(family, model);
  return model;
}

}  // namespace rankslice
