#include "rankslice/verify.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "copies.hpp"
#include "hf_files.hpp"
#include "plan/plan.hpp"
#include "state/consistency.hpp"
#include "storage_reader.hpp"
#include "verify/compare.hpp"
#include "verify/coverage.hpp"
#include "verify/mesh_tables.hpp"
#include "verify/shared_mismatches.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// Drops from a list of reference digests what is not to be compared.
using Restriction = std::function<Digests(Digests const&)>;

void add(VerifyReport& report, std::vector<Mismatch> const& more) {
  report.mismatches.insert(report.mismatches.end(), more.begin(), more.end());
}

/// Name the rank that holds, or read, each expert that differs from a reference.
void name_owners(std::vector<Mismatch>& mismatches, Checkpoint const& source, Mesh const& mesh) {
  auto const parts = static_cast<std::uint64_t>(mesh.ep);
  for (auto& mismatch : mismatches) {
    if (mismatch.expert < 0 || mismatch.rank >= 0) continue;
    auto const& parameter = *std::ranges::find(source.parameters, mismatch.tensor, &Parameter::hf_key);
    auto const expert = static_cast<std::uint64_t>(mismatch.expert);
    for (std::uint64_t ep = 0; ep < parts; ++ep) {
      if (expert < balanced_part(parameter.hf_shape[0], parts, ep).end) {
        mismatch.rank = static_cast<int>(ep);
        break;
      }
    }
    mismatch.what = fmt::format("rank {}: {}", mismatch.rank, mismatch.what);
  }
}

/// Compare what all ranks together read with every reference there is: what `source` recorded itself, and
/// `options.against`. Rank 0 adds what differs. Collective.
void compare_with_references(Checkpoint const& source, Digests const& read, VerifyOptions const& options,
                             Communicator& world, Mesh const& mesh, Restriction const& restrict, VerifyReport& report) {
  auto const compare = [&](std::string_view name, Digests const& reference) {
    report.reference = name;
    if (world.rank() != 0) return;
    auto found = differences(source.parameters, NamedDigests{name, restrict(reference)}, {"read", read}, -1);
    name_owners(found, source, mesh);
    add(report, found);
  };
  if (source.digests) compare("store", *source.digests);
  if (options.against == nullptr) return;
  auto const& against = *options.against;
  auto const reference = against.digests ? *against.digests : digest(against, world, options.call);
  std::vector<Mismatch> unmatched;
  auto const ordered = in_order_of(source, against, reference, read, unmatched);
  if (world.rank() == 0) add(report, unmatched);
  compare("against", ordered);
}

void require_read_digests(StateDict const& state) {
  if (state.read.source.tensors() > 0) return;
  throw PlanError("nothing was digested while loading; load with VerifyLevel::full");
}

/// Digests without the tensors that were not asked for: a selection is compared as far as it goes.
Digests only_selected(StateDict const& state, Digests const& all) {
  Digests selected(state.source->parameters);
  for (std::size_t i = 0; i < state.selected.size(); ++i) {
    if (!state.selected[i]) continue;
    std::ranges::copy(all.source.of(i), selected.source.of(i).begin());
    std::ranges::copy(all.stored.of(i), selected.stored.of(i).begin());
  }
  return selected;
}

/// … and without the experts that are other ranks'.
Digests only_local(StateDict const& state, Digests const& all) {
  auto local = only_selected(state, all);
  for (auto const& [fqn, tensor] : state.tensors) {
    if (!tensor.parameter.stacked_experts) continue;
    auto const entries = local.source.of(tensor.index);
    auto const part = tensor.part();
    for (std::size_t e = 0; e < entries.size(); ++e) {
      if (e < part.begin || part.end <= e) entries[e] = 0;
    }
  }
  return local;
}

void verify_contents(StateDict const& state, MeshTables& mesh, Communicator& world, VerifyOptions const& options,
                     VerifyReport& report) {
  Digests held;
  on_every_rank(world, [&] {
    require_read_digests(state);
    held = digest_held(state, options.call, &world);
  });
  auto const& parameters = state.source->parameters;
  add(report, differences(parameters, NamedDigests{"read", state.read}, {"held", held}, world.rank()));
  auto read = state.read;
  mesh.reduce(read.source, "read", report.mismatches);
  auto const restrict = [&](Digests const& all) { return only_selected(state, all); };
  compare_with_references(*state.source, read, options, world, state.mesh, restrict, report);
}

}  // namespace

VerifyReport verify(StateDict const& state, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (options.level != VerifyLevel::full) return report;
  for (auto const& [fqn, tensor] : state.tensors) {
    require_consistent(tensor, *state.source);
    ++report.tensors;
    if (tensor.parameter.stacked_experts) report.experts += tensor.part().size();
  }
  require_read_digests(state);
  auto const& parameters = state.source->parameters;
  auto const rank = state.mesh.rank(state.coordinate);
  auto const held = digest_held(state, options.call, nullptr);
  add(report, differences(parameters, NamedDigests{"read", state.read}, {"held", held}, rank));
  if (state.source->digests) {
    report.reference = "store";
    auto const recorded = only_local(state, *state.source->digests);
    add(report, differences(parameters, NamedDigests{"store", recorded}, {"read", state.read}, rank));
  }
  return report;
}

VerifyReport verify(StateDict const& state, Communicator& world, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (options.level == VerifyLevel::off) return report;
  on_every_rank(world, [&] { require_consistent(state, world); });
  for (auto const& [fqn, tensor] : state.tensors) {
    ++report.tensors;
    if (tensor.parameter.stacked_experts) report.experts += tensor.parameter.shape[0];
  }
  if (options.level == VerifyLevel::full) require_equal_copies(*state.source, world, options.call);
  if (check_alike(state, world, report.mismatches)) {
    MeshTables mesh(state, world);
    check_coverage(state, mesh, world.rank() == 0, report.mismatches);
    if (options.level == VerifyLevel::full) verify_contents(state, mesh, world, options, report);
  }
  share_mismatches(report.mismatches, world);
  return report;
}

Digests digest(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call) {
  auto const& parameters = checkpoint.parameters;
  Digests sums;
  on_every_rank(world, [&] {
    auto const mesh = make_mesh(world.size());
    auto const plan = make_save_plan(parameters, mesh, mesh.coordinate(world.rank()));
    auto const bytes = plan_bytes(parameters, plan, checkpoint.storage.form);
    sums = digest_parts(parameters, plan, checkpoint.storage, watch(call, "verify", bytes, &world));
  });
  world.all_reduce(sums.source.values(), Reduce::sum);
  world.all_reduce(sums.stored.values(), Reduce::sum);
  return sums;
}

VerifyReport verify(Checkpoint const& checkpoint, Communicator& world, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (options.level == VerifyLevel::off) return report;
  report.tensors = checkpoint.parameters.size();
  for (auto const& parameter : checkpoint.parameters) {
    if (parameter.stacked_experts) report.experts += parameter.hf_shape[0];
  }
  if (options.level == VerifyLevel::coverage) return report;  // opening it has proved that much
  require_equal_copies(checkpoint, world, options.call);
  auto const read = digest(checkpoint, world, options.call);
  on_every_rank(world, [&] {
    if (world.rank() == 0) check_side_files(checkpoint.hf, watch({.stop = options.call.stop}, "verify", 0, &world));
  });
  auto const whole = [](Digests const& all) { return all; };
  compare_with_references(checkpoint, read, options, world, make_mesh(world.size()), whole, report);
  share_mismatches(report.mismatches, world);
  return report;
}

}  // namespace rankslice
