#include <algorithm>

#include "plan/held.hpp"
#include "plan/plan.hpp"

namespace rankslice {

namespace {

// The units of a tensor between two bytes of all dense bytes laid end to end. Bounds are rounded down to whole units,
// so that neighbours that share a bound share no unit and leave none out.
Range units_within(Range bytes, std::uint64_t tensor_begin, std::uint64_t count, std::uint64_t unit) {
  auto const unit_at = [&](std::uint64_t bound) {
    return bound <= tensor_begin ? 0 : std::min((bound - tensor_begin) / unit, count);
  };
  return {unit_at(bytes.begin), unit_at(bytes.end)};
}

std::uint64_t dense_bytes(Model const& model) {
  std::uint64_t total = 0;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts) total += parameter.bytes(parameter.whole(), Form::hf);
  }
  return total;
}

}  // namespace

std::vector<PlannedSlice> make_save_plan(Model const& model, Mesh const& mesh, MeshCoordinate const& coordinate) {
  auto const share = balanced_part(dense_bytes(model), static_cast<std::uint64_t>(mesh.ranks()),
                                   static_cast<std::uint64_t>(mesh.rank(coordinate)));
  std::uint64_t dense_begin = 0;
  std::vector<PlannedSlice> plan;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    auto slice = parameter.whole();
    if (parameter.stacked_experts) {
      slice = written_slice(parameter, mesh, coordinate);
    } else {
      auto const unit = parameter.unit_bytes(Form::hf);
      auto const bytes = parameter.bytes(slice, Form::hf);
      slice.part = units_within(share, dense_begin, parameter.part_count(), unit);
      dense_begin += bytes;
    }
    if (!slice.empty()) plan.push_back({.parameter = i, .slice = slice});
  }
  return plan;
}

}  // namespace rankslice
