#include "rankslice/verify.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/fingerprint.hpp"
#include "verify/compare.hpp"
#include "verify/mesh_tables.hpp"
#include "verify/references.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice {

namespace {

/// What every rank must have alike: names, dtypes and global shapes of the held tensors, and the source.
std::string describe(StateDict const& state) {
  auto text = state.source->fingerprint;
  for (auto const& [fqn, tensor] : state.tensors) {
    text += fmt::format("\n{} {} {}", fqn, name(tensor.parameter.dtype), to_string(tensor.parameter.shape));
  }
  return text;
}

void check_alike(StateDict const& state, Communicator& world, std::vector<Mismatch>& mismatches) {
  auto const text = describe(state);
  auto const hash = xxh3_128(std::as_bytes(std::span(text)));
  std::vector<std::uint64_t> low{std::stoull(hash.substr(0, 16), nullptr, 16),
                                 std::stoull(hash.substr(16), nullptr, 16)};
  auto const mine = low;
  auto high = low;
  world.all_reduce(low, Reduce::min);
  world.all_reduce(high, Reduce::max);
  if (low == high) return;
  auto of_rank_0 = mine;
  world.broadcast(std::as_writable_bytes(std::span(of_rank_0)), 0);
  if (of_rank_0 == mine) return;
  mismatches.push_back({.tensor = {},
                        .expert = -1,
                        .rank = world.rank(),
                        .what = fmt::format("rank {}: its {} tensors have other names, dtypes or global shapes than "
                                            "those of rank 0, or come from another checkpoint",
                                            world.rank(), state.tensors.size())});
}

/// Every expert of every held stacked tensor is on exactly one rank of each replica, every dense tensor whole on all.
void check_coverage(StateDict const& state, MeshTables& mesh, std::vector<Mismatch>& mismatches, bool report_sums) {
  DigestTable counts(state.source->parameters);
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const entries = counts.of(tensor.index);
    auto const part = tensor.part();
    if (tensor.parameter.stacked_experts) {
      for (auto e = part.begin; e < part.end; ++e) ++entries[e];
    } else if (!entries.empty()) {
      entries[0] = part.size();
    }
  }
  mesh.reduce(counts, "held parts", mismatches);
  if (!report_sums) return;
  for (auto const& [fqn, tensor] : state.tensors) {
    if (!tensor.parameter.stacked_experts) continue;
    auto const owners = counts.of(tensor.index);
    for (std::size_t e = 0; e < owners.size(); ++e) {
      if (owners[e] == 1) continue;
      mismatches.push_back({.tensor = tensor.parameter.hf_key,
                            .expert = static_cast<std::int64_t>(e),
                            .rank = -1,
                            .what = fmt::format("expert {} of {}: held by {} ranks, expected 1", e,
                                                tensor.parameter.hf_key, owners[e])});
    }
  }
}

void require_read_digests(StateDict const& state) {
  if (state.read.source.tensors() > 0) return;
  throw PlanError("nothing was digested while loading; load with VerifyLevel::full");
}

/// Digests without the experts and tensors that this rank does not hold.
Digests only_local(StateDict const& state, Digests const& all) {
  Digests local{.source = DigestTable(state.source->parameters), .stored = DigestTable(state.source->parameters)};
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const from = all.source.of(tensor.index);
    auto const part = tensor.parameter.stacked_experts ? tensor.part() : Range{0, from.size()};
    auto const to = local.source.of(tensor.index);
    for (auto e = part.begin; e < part.end; ++e) to[e] = from[e];
    std::ranges::copy(all.stored.of(tensor.index), local.stored.of(tensor.index).begin());
  }
  return local;
}

/// Digests without the tensors that the state does not hold: a selection is compared as far as it goes.
Digests only_held(StateDict const& state, Digests const& all) {
  Digests held{.source = DigestTable(state.source->parameters), .stored = DigestTable(state.source->parameters)};
  for (auto const& [fqn, tensor] : state.tensors) {
    std::ranges::copy(all.source.of(tensor.index), held.source.of(tensor.index).begin());
    std::ranges::copy(all.stored.of(tensor.index), held.stored.of(tensor.index).begin());
  }
  return held;
}

}  // namespace

VerifyReport verify(StateDict const& state, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (options.level != VerifyLevel::full) return report;
  report.tensors = state.tensors.size();
  for (auto const& [fqn, tensor] : state.tensors) {
    if (tensor.parameter.stacked_experts) report.experts += tensor.part().size();
  }
  auto const& parameters = state.source->parameters;
  auto const rank = state.mesh.rank(state.coordinate);
  require_read_digests(state);
  auto const held = digest_held(state, options.call, nullptr);
  report.mismatches = differences(parameters, NamedDigests{"read", state.read}, {"held", held}, rank);
  if (state.source->digests) {
    report.reference = "store";
    auto const recorded = only_local(state, *state.source->digests);
    auto const more = differences(parameters, NamedDigests{"store", recorded}, {"read", state.read}, rank);
    report.mismatches.insert(report.mismatches.end(), more.begin(), more.end());
  }
  return report;
}

VerifyReport verify(StateDict const& state, Communicator& world, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (options.level == VerifyLevel::off) return report;
  auto const& parameters = state.source->parameters;
  report.tensors = state.tensors.size();
  for (auto const& [fqn, tensor] : state.tensors) {
    if (tensor.parameter.stacked_experts) report.experts += tensor.parameter.shape[0];
  }
  auto& found = report.mismatches;
  auto const add = [&](std::vector<Mismatch> const& more) { found.insert(found.end(), more.begin(), more.end()); };

  MeshTables mesh(state, world);
  check_alike(state, world, found);
  check_coverage(state, mesh, found, world.rank() == 0);
  if (options.level == VerifyLevel::full) {
    Digests held;
    on_every_rank(world, [&] {
      require_read_digests(state);
      held = digest_held(state, options.call, &world);
    });
    add(differences(parameters, NamedDigests{"read", state.read}, {"held", held}, world.rank()));
    auto read = state.read;
    mesh.reduce(read.source, "read", found);
    auto const selected = [&](Digests const& all) { return only_held(state, all); };
    compare_with_references(*state.source, read, options, world, selected, report);
  }
  share_mismatches(found, world);
  return report;
}

}  // namespace rankslice
