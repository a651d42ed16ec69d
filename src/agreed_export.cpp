#include "agreed_export.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string_view>

#include "checkpoint_parts.hpp"
#include "copied_slices.hpp"
#include "core/fingerprint.hpp"
#include "exported_state.hpp"
#include "state/consistency.hpp"

namespace rankslice {

namespace {

std::vector<PlannedSlice> all_units(ExportPlan const& plan) {
  std::vector<std::size_t> all(plan.segments.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  return units_of(plan.segments, all);
}

/// All that is written goes through one rank.
void gather_all(ExportPlan& plan) {
  auto const whole = plan_export(plan.target, {.mesh = make_mesh(1)}, 0, all_units(plan));
  auto owners = plan.owners;
  owners.receiver = kWriter;
  plan.gather = plan_gather(plan.target.model, whole.computed, owners);
}

/// Where the originals are, and what is known of them.
void find_originals(ExportPlan& plan, Checkpoint const& from) {
  auto const& model = plan.target.model;
  plan.originals = storage_of(model, from);
  plan.copied_from = from.path;
  if (!from.digests) return;
  plan.recorded_by = fmt::format("{} of {}", from.digests_from, from.path);
  plan.recorded.emplace(model);
  std::map<std::string_view, std::size_t> by_key;
  for (std::size_t i = 0; i < from.model.tensors.size(); ++i) by_key.emplace(from.model.tensors[i].key, i);
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    std::ranges::copy(from.digests->source.of(by_key.at(model.tensors[i].key)), plan.recorded->source.of(i).begin());
  }
}

}  // namespace

ExportPlan agree_on_export(Checkpoint const& source, GatherOwners const& owners, Communicator& world,
                           ExportOptions const& options) {
  ExportPlan plan;
  plan.owners = owners;
  std::string originals = "none";
  on_every_rank(world, [&] {
    plan.target = make_export_target(source, options);
    plan.files = target_storage(plan.target.files, plan.target.model, {});
    plan.segments = divide_into_segments(plan.target.model, plan.files);
    if (options.gather) gather_all(plan);
    if (!has_copies(plan.target)) return;
    auto const& from = copied_from(source, options);
    find_originals(plan, from);
    originals = checkpoint_fingerprint(from);
  });
  require_same(fmt::format("{} {:d} {:d}", fingerprint(plan.target.files.hf), options.gather, options.resume),
               "would write other files than rank 0, or write them otherwise; options must be the same on every rank",
               world);
  require_same(xxh3_128(std::as_bytes(std::span(originals))),
               fmt::format("would copy from another checkpoint than rank 0, or knows other digests of it: {}, {}",
                           plan.copied_from, plan.recorded ? plan.recorded_by : "no recorded digests"),
               world);
  return plan;
}

ExportPart part_of(ExportPlan const& plan, std::vector<PlannedSlice> const& units, int rank) {
  auto const& target = plan.target;
  if (!plan.gather) return {.slices = plan_export(target, plan.owners.holdings, rank, units), .gather = {}};
  ExportPart part{.slices = {}, .gather = cut_by_units(target.model, *plan.gather, units)};
  if (rank != kWriter) return part;
  part.slices = plan_export(target, {.mesh = make_mesh(1)}, 0, units);
  part.slices.compared.clear();
  return part;
}

std::vector<PlannedSlice> taken_for(ExportPart const& part, int rank) {
  return part.gather ? slices_sent_by(*part.gather, rank) : part.slices.computed;
}

std::vector<PlannedSlice> compared_slices(ExportPlan const& plan, int rank) {
  return plan_export(plan.target, plan.owners.holdings, rank, all_units(plan)).compared;
}

bool is_copied(ExportTarget const& target, std::size_t tensor) {
  return !target.model.parameters[target.model.tensors[tensor].parameter].invertible();
}

Digests of_copies(ExportTarget const& target, Digests const& digests) {
  auto copied = target.taken;
  for (std::size_t i = 0; i < copied.size(); ++i) copied[i] = copied[i] && is_copied(target, i);
  return without_left_out(copied, digests);
}

}  // namespace rankslice
