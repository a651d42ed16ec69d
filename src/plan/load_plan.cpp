#include <map>

#include "plan/experts.hpp"
#include "plan/plan.hpp"

namespace rankslice {

namespace {

Range held_part(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate) {
  auto const count = parameter.part_count();
  return parameter.stacked_experts ? held_experts(count, mesh, coordinate) : Range{0, count};
}

// Bytes of one expert of all stacked tensors that have the same number of experts.
struct ExpertBytes {
  std::uint64_t read = 0;
  std::uint64_t owned = 0;
};

}  // namespace

LoadPlan make_load_plan(std::vector<Parameter> const& parameters, Form storage_form, Mesh const& mesh,
                        MeshCoordinate const& coordinate, KeySelection const& keys) {
  LoadPlan plan;
  plan.parts.reserve(parameters.size());
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    auto const& parameter = parameters[i];
    if (keys && !keys(parameter.hf_key)) continue;
    auto const part = held_part(parameter, mesh, coordinate);
    plan.parts.push_back({.parameter = i, .part = part});
    plan.bytes_read += part.size() * parameter.part_bytes(storage_form);
    plan.bytes_owned += part.size() * parameter.part_bytes(Form::native);
  }
  return plan;
}

std::vector<RankBytes> plan_all_ranks(std::vector<Parameter> const& parameters, Form storage_form, Mesh const& mesh) {
  RankBytes dense;
  std::map<std::uint64_t, ExpertBytes> stacked;  // by E, of which a model has very few
  std::uint64_t first_experts = 0;
  for (auto const& parameter : parameters) {
    auto const count = parameter.part_count();
    if (!parameter.stacked_experts) {
      dense.read += count * parameter.part_bytes(storage_form);
      dense.owned += count * parameter.part_bytes(Form::native);
      continue;
    }
    if (stacked.empty()) first_experts = count;
    auto& bytes = stacked[count];
    bytes.read += parameter.part_bytes(storage_form);
    bytes.owned += parameter.part_bytes(Form::native);
  }
  std::vector<RankBytes> ranks;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const coordinate = mesh.coordinate(rank);
    auto& bytes = ranks.emplace_back(dense);
    for (auto const& [experts, of_one] : stacked) {
      auto const held = held_experts(experts, mesh, coordinate).size();
      bytes.read += held * of_one.read;
      bytes.owned += held * of_one.owned;
    }
    bytes.experts = held_experts(first_experts, mesh, coordinate).size();
  }
  return ranks;
}

std::uint64_t plan_bytes(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan, Form form) {
  std::uint64_t bytes = 0;
  for (auto const& item : plan) bytes += item.part.size() * parameters[item.parameter].part_bytes(form);
  return bytes;
}

}  // namespace rankslice
