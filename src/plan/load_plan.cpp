#include <map>
#include <utility>

#include "plan/held.hpp"
#include "plan/plan.hpp"

namespace rankslice {

namespace {

void add_slice(RankBytes& bytes, Parameter const& parameter, Slice const& held, Form form) {
  auto const scales = parameter.scale_bytes_for(held, form);
  bytes.wanted += parameter.bytes(held, form) + scales;
  bytes.read += parameter.bytes(parameter.read_for(held, form), form) + scales;
  bytes.owned += parameter.bytes(held, Form::native);
}

}  // namespace

LoadPlan make_load_plan(Model const& model, Form storage_form, std::vector<PlannedSlice> slices) {
  RankBytes bytes;
  for (auto const& [parameter, slice] : slices) add_slice(bytes, model.parameters[parameter], slice, storage_form);
  return {
      .slices = std::move(slices), .bytes_wanted = bytes.wanted, .bytes_read = bytes.read, .bytes_owned = bytes.owned};
}

LoadPlan make_load_plan(Model const& model, Form storage_form, Mesh const& mesh, MeshCoordinate const& coordinate) {
  std::vector<PlannedSlice> slices;
  slices.reserve(model.parameters.size());
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    slices.push_back({.parameter = i, .slice = held_slice(model.parameters[i], mesh, coordinate)});
  }
  return make_load_plan(model, storage_form, std::move(slices));
}

std::vector<RankBytes> plan_all_ranks(Model const& model, Form storage_form, Mesh const& mesh) {
  RankBytes dense;
  std::map<std::uint64_t, RankBytes> stacked;  // of one expert of all tensors with that many, which a model has few of
  std::uint64_t first_experts = 0;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts) {
      add_slice(dense, parameter, parameter.whole(), storage_form);
      continue;
    }
    auto one = held_slice(parameter, mesh, {});  // every rank has as many rows as this one
    one.part = {0, 1};
    if (stacked.empty()) first_experts = parameter.part_count();
    add_slice(stacked[parameter.part_count()], parameter, one, storage_form);
  }
  std::vector<RankBytes> ranks;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const ep = static_cast<std::uint64_t>(mesh.coordinate(rank).ep);
    auto const held = [&](std::uint64_t experts) {
      return balanced_part(experts, static_cast<std::uint64_t>(mesh.ep), ep).size();
    };
    auto& bytes = ranks.emplace_back(dense);
    for (auto const& [experts, of_one] : stacked) {
      bytes.wanted += held(experts) * of_one.wanted;
      bytes.read += held(experts) * of_one.read;
      bytes.owned += held(experts) * of_one.owned;
    }
    bytes.experts = held(first_experts);
  }
  return ranks;
}

std::vector<PlannedSlice> held_slices(Model const& model, Holdings const& holdings, int rank) {
  std::vector<PlannedSlice> slices;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    slices.push_back({.parameter = i, .slice = held_share(model, i, holdings, rank).slice});
  }
  return slices;
}

std::uint64_t plan_bytes(Model const& model, std::vector<PlannedSlice> const& plan, Form form) {
  std::uint64_t bytes = 0;
  for (auto const& item : plan) {
    auto const& parameter = model.parameters[item.parameter];
    bytes += parameter.bytes(item.slice, form) + parameter.scale_bytes_for(item.slice, form);
  }
  return bytes;
}

}  // namespace rankslice
