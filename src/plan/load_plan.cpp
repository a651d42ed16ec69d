#include <fmt/format.h>

#include <map>

#include "rankslice/error.hpp"

#include "plan/ep_shard.hpp"
#include "plan/plan.hpp"

namespace rankslice {

namespace {

std::uint64_t to_count(int value) { return static_cast<std::uint64_t>(value); }

Range owned_part(Parameter const& parameter, Mesh const& mesh, int ep) {
  if (!parameter.stacked_experts) return {0, parameter.part_count()};
  return balanced_part(parameter.part_count(), to_count(mesh.ep), to_count(ep));
}

// Bytes of one expert of all stacked tensors that have the same number of experts.
struct ExpertBytes {
  std::uint64_t read = 0;
  std::uint64_t owned = 0;
};

}  // namespace

LoadPlan make_load_plan(std::vector<Parameter> const& parameters, Form storage_form, Mesh const& mesh,
                        MeshCoordinate const& coordinate, KeySelection const& keys) {
  check_ep_shard(mesh);
  LoadPlan plan;
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    auto const& parameter = parameters[i];
    if (keys && !keys(parameter.hf_key)) continue;
    auto const part = owned_part(parameter, mesh, coordinate.ep);
    plan.parts.push_back({.parameter = i, .part = part});
    plan.bytes_read += part.size() * parameter.part_bytes(storage_form);
    plan.bytes_owned += part.size() * parameter.part_bytes(Form::native);
  }
  return plan;
}

std::vector<RankBytes> plan_all_ranks(std::vector<Parameter> const& parameters, Form storage_form, Mesh const& mesh) {
  check_ep_shard(mesh);
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
  std::vector<RankBytes> ranks(to_count(mesh.ranks()), dense);
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto& bytes = ranks[to_count(rank)];
    auto const ep = to_count(mesh.coordinate(rank).ep);
    for (auto const& [experts, of_one] : stacked) {
      auto const owned = balanced_part(experts, to_count(mesh.ep), ep).size();
      bytes.read += owned * of_one.read;
      bytes.owned += owned * of_one.owned;
    }
    bytes.experts = balanced_part(first_experts, to_count(mesh.ep), ep).size();
  }
  return ranks;
}

}  // namespace rankslice
