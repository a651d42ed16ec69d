#include "verify/mesh_tables.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/device.hpp"

#include "comm/checked_bytes.hpp"
#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "transform/device_digest.hpp"
#include "transform/parameter_digest.hpp"
#include "verify/compare.hpp"
#include "verify/coverage.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 1_MiB;

template <typename Step>
void for_each_stacked(Model const& model, DigestTable& table, Step const& step) {
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (model.parameters[model.tensors[i].parameter].stacked_experts) step(table.of(i));
  }
}

/// Call step(first_element, begin, end) for blocks of bytes of a local tensor that are contiguous in the global one.
template <typename Step>
void for_each_block(ShardedTensor const& tensor, Step const& step) {
  auto const& parameter = tensor.parameter;
  auto const held = tensor.slice();
  auto const unit = parameter.unit_bytes(Form::native);
  auto const runs =
      held.rows.size() == parameter.row_count() ? std::min<std::uint64_t>(1, held.part.size()) : held.part.size();
  for (std::uint64_t i = 0; i < runs; ++i) {
    auto const first_row = (held.part.begin + i) * parameter.row_count() + held.rows.begin;
    auto const run_bytes = tensor.data.bytes / runs;
    for (std::uint64_t begin = 0; begin < run_bytes; begin += kBlockBytes) {
      auto const size = std::min<std::uint64_t>(kBlockBytes, run_bytes - begin);
      step(first_row * parameter.columns() + begin / unit, i * run_bytes + begin, size);
    }
  }
}

std::span<std::byte const> host_bytes(Buffer const& memory, std::uint64_t begin, std::uint64_t size,
                                      std::vector<std::byte>& downloaded) {
  if (!memory.device) return memory.span().subspan(begin, size);
  downloaded.resize(size);
  memory.device->download(memory.data.get() + begin, downloaded);
  return downloaded;
}

/// Only the host computes values back to what they were converted from.
bool digested_on_device(ShardedTensor const& tensor) {
  return tensor.data.device && (!tensor.parameter.converted() || !tensor.parameter.invertible());
}

}  // namespace

MeshTables::MeshTables(StateDict const& state, Communicator& world) : model_(state.source->model), world_(world) {
  // One replica is the whole world: a communicator of its own may cost much to start.
  if (state.mesh.ep_replicate > 1) part_ = world.split(state.coordinate.ep_replicate);
}

void MeshTables::sum(DigestTable& table) {
  std::vector<std::uint64_t> sharded;
  for_each_stacked(model_, table, [&](std::span<std::uint64_t> values) {
    sharded.insert(sharded.end(), values.begin(), values.end());
  });
  replica().all_reduce(sharded, Reduce::sum);
  auto next = sharded.begin();
  for_each_stacked(model_, table, [&](std::span<std::uint64_t> values) {
    std::copy_n(next, values.size(), values.begin());
    next += static_cast<std::ptrdiff_t>(values.size());
  });
}

void MeshTables::reduce(DigestTable& table, std::string_view what, std::vector<Mismatch>& mismatches) {
  sum(table);
  compare_replicas(table, what, mismatches);
}

void MeshTables::compare_replicas(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches) {
  auto const hash = xxh3_128(std::as_bytes(table.values()));
  auto hash_of_rank_0 = hash;
  world_.broadcast(std::as_writable_bytes(std::span(hash_of_rank_0)), 0);
  if (all_say(world_, hash == hash_of_rank_0)) return;
  auto of_rank_0 = table;
  world_.broadcast(std::as_writable_bytes(of_rank_0.values()), 0);
  auto const mine = fmt::format("{} here", what);
  auto const found = differences(model_, NamedTable{"rank 0's", of_rank_0}, {mine, table}, world_.rank());
  mismatches.insert(mismatches.end(), found.begin(), found.end());
}

std::optional<Digests> known_codes(StateDict const& state, Communicator& world) {
  if (all_say(world, state.read.source.tensors() > 0 && !state.read.without_codes)) {
    auto read = state.read;
    MeshTables mesh(state, world);
    mesh.sum(read.source);
    mesh.sum(read.stored);
    return read;
  }
  auto const& recorded = state.source->digests;
  return recorded && !recorded->without_codes ? recorded : std::nullopt;
}

Digests digest_held(StateDict const& state, CallOptions const& call, Communicator* world) {
  auto const& model = state.source->model;
  Digests held(model);
  held.without_codes = true;
  std::uint64_t total = 0;
  for (auto const& [fqn, tensor] : state.tensors) total += tensor.data.bytes;
  std::uint64_t done = 0;
  auto const account = [&](std::uint64_t bytes) {
    done += bytes;
    if (call.stop.stop_requested()) throw Interrupted();
    if (world != nullptr) world->progress();
    if (call.progress) call.progress({.phase = "verify", .done = done, .total = total});
  };
  std::vector<std::byte> downloaded;
  for (auto const& [fqn, tensor] : state.tensors) {
    ParameterDigest digest(model, tensor.parameter);
    if (digested_on_device(tensor)) {
      add_native_on_device(model, tensor.parameter, tensor.slice(), tensor.data, held);
      account(tensor.data.bytes);
      continue;
    }
    for_each_block(tensor, [&](std::uint64_t first_element, std::uint64_t begin, std::uint64_t size) {
      digest.add_native(first_element, host_bytes(tensor.data, begin, size, downloaded), held);
      account(size);
    });
  }
  return held;
}

Digests digest_all_held(StateDict const& state, CallOptions const& call, Communicator& world) {
  Digests held;
  on_every_rank(world, [&] { held = digest_held(state, call, &world); });
  return in_all_ranks(state, std::move(held), world);
}

Digests in_all_ranks(StateDict const& state, Digests held, Communicator& world) {
  VerifyReport report;
  MeshTables mesh(state, world);
  check_coverage(state, mesh, report.mismatches);
  mesh.reduce(held.source, "held", report.mismatches);
  mesh.reduce(held.stored, "held", report.mismatches);
  share_mismatches(report, world);
  on_every_rank(world, [&] { report.throw_if_bad(); });
  return held;
}

}  // namespace rankslice
