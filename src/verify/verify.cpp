#include "rankslice/verify.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "transform/parameter_digest.hpp"
#include "verify/compare.hpp"
#include "verify/references.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 1_MiB;

/// Tables of one number per expert of a stacked tensor and one per dense tensor, and what the mesh makes of them.
class MeshTables {
 public:
  MeshTables(StateDict const& state, Communicator& world)
      : state_(state), world_(world), replica_(world.split(state.coordinate.ep_replicate)) {}

  /// Sum the stacked tensors over each replica of the mesh; then every replica must have the same numbers. Collective.
  void reduce(DigestTable& table, std::string_view what, std::vector<Mismatch>& mismatches) {
    std::vector<std::uint64_t> sharded;
    for_each_stacked(
        table, [&](std::span<std::uint64_t> values) { sharded.insert(sharded.end(), values.begin(), values.end()); });
    replica_->all_reduce(sharded, Reduce::sum);
    auto next = sharded.begin();
    for_each_stacked(table, [&](std::span<std::uint64_t> values) {
      std::copy_n(next, values.size(), values.begin());
      next += static_cast<std::ptrdiff_t>(values.size());
    });
    compare_replicas(table, what, mismatches);
  }

 private:
  template <typename Step>
  void for_each_stacked(DigestTable& table, Step const& step) {
    auto const& parameters = state_.source->parameters;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].stacked_experts) step(table.of(i));
    }
  }

  void compare_replicas(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches) {
    std::vector<std::uint64_t> low(table.values().begin(), table.values().end());
    auto high = low;
    world_.all_reduce(low, Reduce::min);
    world_.all_reduce(high, Reduce::max);
    if (low == high) return;
    auto of_rank_0 = table;  // the same on every rank so far: min and max differ everywhere or nowhere
    world_.broadcast(std::as_writable_bytes(of_rank_0.values()), 0);
    auto const mine = fmt::format("{} here", what);
    auto found =
        differences(state_.source->parameters, NamedTable{"rank 0's", of_rank_0}, {mine, table}, world_.rank());
    mismatches.insert(mismatches.end(), found.begin(), found.end());
  }

  StateDict const& state_;
  Communicator& world_;
  std::unique_ptr<Communicator> replica_;
};

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

/// The digests of what stands in memory now, with coordinates from each tensor's own offsets and shape.
Digests digest_held(StateDict const& state, VerifyOptions const& options, Communicator* world) {
  if (state.read.source.tensors() == 0) {
    throw PlanError("nothing was digested while loading; load with VerifyLevel::full");
  }
  Digests held{.source = DigestTable(state.source->parameters), .stored = DigestTable(state.source->parameters)};
  std::uint64_t total = 0;
  for (auto const& [fqn, tensor] : state.tensors) total += tensor.data.bytes;
  std::uint64_t done = 0;
  for (auto const& [fqn, tensor] : state.tensors) {
    ParameterDigest digest(tensor.parameter);
    auto const unit = bits(tensor.parameter.dtype) < 8 ? 1 : element_bytes(tensor.parameter.dtype);
    auto const first = tensor.part().begin * tensor.parameter.part_bytes(Form::native) / unit;
    auto const bytes = tensor.data.span();
    for (std::uint64_t begin = 0; begin < bytes.size(); begin += kBlockBytes) {
      if (options.call.stop.stop_requested()) throw Interrupted();
      auto const block = bytes.subspan(begin, std::min<std::uint64_t>(kBlockBytes, bytes.size() - begin));
      digest.add(Form::native, first + begin / unit, block, held, tensor.index);
      done += block.size();
      if (world != nullptr) world->progress();
      if (options.call.progress) options.call.progress({.phase = "verify", .done = done, .total = total});
    }
  }
  return held;
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

void count(StateDict const& state, VerifyReport& report) {
  for (auto const& [fqn, tensor] : state.tensors) {
    ++report.tensors;
    if (tensor.parameter.stacked_experts) report.experts += tensor.parameter.shape[0];
  }
}

}  // namespace

VerifyReport verify(StateDict const& state, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (options.level != VerifyLevel::full) return report;
  count(state, report);
  auto const& parameters = state.source->parameters;
  auto const rank = state.mesh.rank(state.coordinate);
  auto const held = digest_held(state, options, nullptr);
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
  count(state, report);
  auto& found = report.mismatches;
  auto const add = [&](std::vector<Mismatch> const& more) { found.insert(found.end(), more.begin(), more.end()); };

  MeshTables mesh(state, world);
  check_alike(state, world, found);
  check_coverage(state, mesh, found, world.rank() == 0);
  if (options.level == VerifyLevel::full) {
    Digests held;
    on_every_rank(world, [&] {
      if (state.read.source.tensors() == 0)
        throw PlanError("nothing was digested while loading; load with verify = full");
      held = digest_held(state, options, &world);
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
