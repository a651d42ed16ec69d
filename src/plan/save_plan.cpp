#include <map>

#include "plan/held.hpp"
#include "plan/plan.hpp"
#include "plan/segments.hpp"
#include "plan/units_within.hpp"

namespace rankslice {

namespace {

/// Ranks that hold the same slices of dense tensors share the writing of them: by their ranks, of all of which the
/// mesh gives everything none is listed.
std::vector<int> group_of(HeldShare const& share) { return {share.ranks.begin(), share.ranks.end()}; }

std::vector<PlannedSlice> divide(Model const& model, Holdings const& holdings, int rank,
                                 std::vector<bool> const& taken) {
  std::vector<HeldShare> shares;
  std::map<std::vector<int>, std::uint64_t> dense_bytes;  // of each group of which this rank is one
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    auto const& share = shares.emplace_back(held_share(model, i, holdings, rank));
    if (taken[i] && !parameter.stacked_experts) {
      dense_bytes[group_of(share)] += parameter.bytes(share.slice, Form::hf);
    }
  }
  std::map<std::vector<int>, std::uint64_t> dense_begin;
  std::vector<PlannedSlice> plan;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    if (!taken[i]) continue;
    auto const& parameter = model.parameters[i];
    auto const& share = shares[i];
    auto slice = share.slice;
    auto part = balanced_part(slice.part.size(), share.holders, share.place);
    if (!parameter.stacked_experts) {
      auto const bytes = balanced_part(dense_bytes[group_of(share)], share.holders, share.place);
      auto& begin = dense_begin[group_of(share)];
      part = units_within(bytes, begin, slice.part.size(), parameter.unit_bytes(Form::hf));
      begin += parameter.bytes(slice, Form::hf);
    }
    slice.part = {slice.part.begin + part.begin, slice.part.begin + part.end};
    if (!slice.empty()) plan.push_back({.parameter = i, .slice = slice});
  }
  return plan;
}

}  // namespace

std::vector<PlannedSlice> make_save_plan(Model const& model, Holdings const& holdings, int rank) {
  return divide(model, holdings, rank, std::vector<bool>(model.parameters.size(), true));
}

std::vector<PlannedSlice> make_save_plan(Model const& model, Holdings const& holdings, int rank,
                                         std::vector<PlannedSlice> const& units) {
  std::vector<bool> taken(model.parameters.size(), false);
  for (auto const& unit : units) taken[unit.parameter] = true;
  return cut_by_units(divide(model, holdings, rank, taken), units);
}

}  // namespace rankslice
