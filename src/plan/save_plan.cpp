#include <algorithm>

#include "plan/experts.hpp"
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

std::uint64_t dense_bytes(std::vector<Parameter> const& parameters) {
  std::uint64_t total = 0;
  for (auto const& parameter : parameters) {
    if (!parameter.stacked_experts) total += parameter.part_count() * parameter.part_bytes(Form::hf);
  }
  return total;
}

}  // namespace

std::vector<PlannedPart> make_save_plan(std::vector<Parameter> const& parameters, Mesh const& mesh,
                                        MeshCoordinate const& coordinate) {
  auto const share = balanced_part(dense_bytes(parameters), static_cast<std::uint64_t>(mesh.ranks()),
                                   static_cast<std::uint64_t>(mesh.rank(coordinate)));
  std::uint64_t dense_begin = 0;
  std::vector<PlannedPart> parts;
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    auto const& parameter = parameters[i];
    auto const count = parameter.part_count();
    Range part;
    if (parameter.stacked_experts) {
      part = written_experts(count, mesh, coordinate);
    } else {
      auto const unit = parameter.part_bytes(Form::hf);
      part = units_within(share, dense_begin, count, unit);
      dense_begin += count * unit;
    }
    if (!part.empty()) parts.push_back({.parameter = i, .part = part});
  }
  return parts;
}

}  // namespace rankslice
