#include "model/exported_form.hpp"

#include <algorithm>

#include "model/quantised.hpp"

namespace rankslice {

std::optional<HeldExperts> find_held_experts(Model const& model, Stack stack) {
  std::optional<HeldExperts> held;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts || is_mtp(parameter.fqn) != (stack == Stack::mtp)) continue;
    auto const& first = model.tensors[parameter.tensors.front()];
    auto const grouped = first.shape.size() == parameter.shape.size();
    if (!held) held.emplace();
    held->form = grouped ? ExpertForm::grouped : ExpertForm::split;
    held->quantised = held->quantised || is_quantised(first.dtype);
  }
  return held;
}

ExpertForm exported_form(KeyTable const& table, Stack stack, std::optional<HeldExperts> const& held) {
  auto const rule = std::ranges::find(table.stacked, stack, &StackedRule::stack);
  if (rule == table.stacked.end() || rule->split.empty()) return ExpertForm::grouped;
  if (!held) return rule->without_source;
  auto const regrouped = held->form == ExpertForm::split && held->quantised && stack == Stack::decoder;
  return regrouped ? rule->without_source : held->form;
}

}  // namespace rankslice
