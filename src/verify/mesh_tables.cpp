#include "verify/mesh_tables.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/literals.hpp"
#include "transform/parameter_digest.hpp"
#include "verify/compare.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 1_MiB;

template <typename Step>
void for_each_stacked(std::vector<Parameter> const& parameters, DigestTable& table, Step const& step) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].stacked_experts) step(table.of(i));
  }
}

}  // namespace

MeshTables::MeshTables(StateDict const& state, Communicator& world)
    : parameters_(state.source->parameters), world_(world), replica_(world.split(state.coordinate.ep_replicate)) {}

void MeshTables::reduce(DigestTable& table, std::string_view what, std::vector<Mismatch>& mismatches) {
  std::vector<std::uint64_t> sharded;
  for_each_stacked(parameters_, table, [&](std::span<std::uint64_t> values) {
    sharded.insert(sharded.end(), values.begin(), values.end());
  });
  replica_->all_reduce(sharded, Reduce::sum);
  auto next = sharded.begin();
  for_each_stacked(parameters_, table, [&](std::span<std::uint64_t> values) {
    std::copy_n(next, values.size(), values.begin());
    next += static_cast<std::ptrdiff_t>(values.size());
  });
  compare_replicas(table, what, mismatches);
}

void MeshTables::compare_replicas(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches) {
  std::vector<std::uint64_t> low(table.values().begin(), table.values().end());
  auto high = low;
  world_.all_reduce(low, Reduce::min);
  world_.all_reduce(high, Reduce::max);
  if (low == high) return;  // on all ranks or on none
  auto of_rank_0 = table;
  world_.broadcast(std::as_writable_bytes(of_rank_0.values()), 0);
  auto const mine = fmt::format("{} here", what);
  auto const found = differences(parameters_, NamedTable{"rank 0's", of_rank_0}, {mine, table}, world_.rank());
  mismatches.insert(mismatches.end(), found.begin(), found.end());
}

Digests digest_held(StateDict const& state, CallOptions const& call, Communicator* world) {
  Digests held(state.source->parameters);
  std::uint64_t total = 0;
  for (auto const& [fqn, tensor] : state.tensors) total += tensor.data.bytes;
  std::uint64_t done = 0;
  for (auto const& [fqn, tensor] : state.tensors) {
    ParameterDigest digest(tensor.parameter);
    auto const unit = bits(tensor.parameter.dtype) < 8 ? 1 : element_bytes(tensor.parameter.dtype);
    auto const first = tensor.part().begin * tensor.parameter.part_bytes(Form::native) / unit;
    auto const bytes = tensor.data.span();
    for (std::uint64_t begin = 0; begin < bytes.size(); begin += kBlockBytes) {
      if (call.stop.stop_requested()) throw Interrupted();
      auto const block = bytes.subspan(begin, std::min<std::uint64_t>(kBlockBytes, bytes.size() - begin));
      digest.add(Form::native, first + begin / unit, block, held, tensor.index);
      done += block.size();
      if (world != nullptr) world->progress();
      if (call.progress) call.progress({.phase = "verify", .done = done, .total = total});
    }
  }
  return held;
}

Digests digest_all_held(StateDict const& state, CallOptions const& call, Communicator& world) {
  Digests held;
  on_every_rank(world, [&] { held = digest_held(state, call, &world); });
  VerifyReport report;
  MeshTables mesh(state, world);
  mesh.reduce(held.source, "held", report.mismatches);
  mesh.reduce(held.stored, "held", report.mismatches);
  share_mismatches(report.mismatches, world);
  on_every_rank(world, [&] { report.throw_if_bad(); });
  return held;
}

}  // namespace rankslice
