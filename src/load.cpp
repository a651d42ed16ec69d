#include "rankslice/load.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <span>
#include <tuple>
#include <utility>

#include "rankslice/error.hpp"

#include "agreed_holdings.hpp"
#include "agreed_threads.hpp"
#include "dense_ring.hpp"
#include "io/huge_pages.hpp"
#include "io/memory.hpp"
#include "plan/dense_shares.hpp"
#include "plan/plan.hpp"
#include "plan/row_exchange_plan.hpp"
#include "read_values.hpp"
#include "row_exchange.hpp"
#include "state/consistency.hpp"
#include "state/local_tensor.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

std::vector<Buffer> allocate(std::span<std::uint64_t const> sizes, LoadOptions const& options) {
  auto const& device = options.device;
  if (!device) return allocate_host(sizes, options.huge_pages);
  if (options.huge_pages == HugePages::on) {
    throw UsageError("huge pages were asked for: they are of host memory, and the tensors are to be on a device");
  }
  std::vector<Buffer> buffers;
  for (auto const bytes : sizes) buffers.push_back({device->allocate(bytes), bytes, device});
  return buffers;
}

/// This rank's slice without values. Host memory is not touched: its pages come as they are read.
StateDict allocate_slice(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                         MeshCoordinate const& coordinate, LoadOptions const& options) {
  StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = source, .read = {}};
  auto const plan = make_load_plan(source->model, source->storage.form, mesh, coordinate);
  std::vector<std::uint64_t> sizes;
  for (auto const& planned : plan.slices) {
    sizes.push_back(source->model.parameters[planned.parameter].bytes(planned.slice, Form::native));
  }
  auto memory = allocate(sizes, options);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    auto const& parameter = source->model.parameters[plan.slices[i].parameter];
    auto tensor = place_local_tensor(parameter, plan.slices[i], mesh);
    tensor.data = std::move(memory[i]);
    state.tensors.emplace(parameter.fqn, std::move(tensor));
  }
  return state;
}

/// @throws UsageError where the tensors, which have been read, were to be on huge pages and are not
void require_pages(StateDict const& state, LoadOptions const& options) {
  if (options.huge_pages != HugePages::on) return;
  std::vector<Buffer> memory;
  for (auto const& [fqn, tensor] : state.tensors) memory.push_back(tensor.data);
  require_on_huge_pages(memory);
}

/// What is read how: what the ranks have alike of `LoadOptions` and `FillOptions`.
struct Reading {
  VerifyLevel level;
  DenseReading dense;
  CallOptions call;  ///< With its threads decided.
};

std::uint64_t bytes_to_read(StateDict const& state, std::vector<PlannedSlice> const& slices) {
  return stored_bytes(state.source->storage, state.source->model, slices).read;
}

/// One rank reads all that it holds.
FillReport read_alone(StateDict& state, Reading const& reading, Communicator* world) {
  state.read = {};  // of values that will be gone, whatever happens
  auto const slices = slices_held(state);
  auto const bytes = bytes_to_read(state, slices);
  state.read = read_values(state, slices, reading.level, reading.call, watch(reading.call, "load", bytes, world));
  return {.bytes_read = bytes};
}

std::vector<Buffer> memory_of(StateDict const& state) {
  std::vector<Buffer> memory(state.source->model.parameters.size());
  for (auto const& [fqn, tensor] : state.tensors) memory[tensor.index] = tensor.data;
  return memory;
}

/// What the ranks read together, each byte once.
struct SharedReading {
  DenseShares dense;
  RowExchangePlan rows;
  std::vector<PlannedSlice> own;  ///< What this rank reads, but for the rows.
};

SharedReading share_reading(StateDict const& state, Holdings const& holdings, Communicator const& world) {
  auto const& [model, storage] = std::tie(state.source->model, state.source->storage);
  SharedReading shared{.dense = share_dense(model, storage.form, holdings, world.size()),
                       .rows = plan_row_exchange(storage, model, holdings, world.rank()),
                       .own = {}};
  shared.own = slices_read(shared.dense, slices_held(state), world.rank());
  std::erase_if(shared.own, [&](PlannedSlice const& item) {
    return std::ranges::binary_search(shared.rows.parameters, item.parameter);
  });
  return shared;
}

/// Every rank reads a share of the dense tensors that all hold, and of the short rows of experts that it shares with
/// others, and hands on what others need of it. Collective.
FillReport read_once(StateDict& state, Holdings const& holdings, Reading const& reading, Communicator& world) {
  auto const& model = state.source->model;
  SharedReading shared;
  std::optional<DenseRing> ring;
  FillReport report;
  BlockDone done;
  Digests read;
  state.read = {};
  on_every_rank(world, [&] {
    shared = share_reading(state, holdings, world);
    ring.emplace(model, shared.dense, memory_of(state), world);
    auto const rows = row_traffic(model, shared.rows);
    report = {.bytes_read = bytes_to_read(state, shared.own) + rows.read,
              .bytes_received = ring->bytes() + rows.received};
    done = watch(reading.call, "load", report.bytes_read + report.bytes_received, &world);
    read = read_values(state, shared.own, reading.level, reading.call, done);
  });
  exchange_rows(state, shared.rows, digests(reading.level) ? &read : nullptr, done, world, reading.call.reading);
  ring->hand_around(done);
  if (digests(reading.level)) add_shares_of_all(read, model, shared.dense, world);
  state.read = std::move(read);
  return report;
}

FillReport read_together(StateDict& state, Holdings const& holdings, Reading const& reading, Communicator& world) {
  if (reading.dense == DenseReading::once) return read_once(state, holdings, reading, world);
  FillReport report;
  on_every_rank(world, [&] { report = read_alone(state, reading, &world); });
  return report;
}

template <typename Options>
Reading reading_of(Options const& options, CallOptions call) {
  return {.level = options.verify, .dense = options.dense, .call = std::move(call)};
}

/// The same on every rank, with the choice made. Collective. @throws PlanError, UsageError
template <typename Options>
Reading agree_on_reading(Options const& options, Communicator& world, HugePages pages = HugePages::automatic) {
  auto reading = reading_of(options, with_threads(options.call, world));
  require_same_options(
      fmt::format("verify level {}, dense {}, huge pages {}", name(reading.level), name(reading.dense), name(pages)),
      world);
  reading.dense = choose(reading.dense, world);
  return reading;
}

std::shared_ptr<Checkpoint const> select(std::shared_ptr<Checkpoint const> const& source, KeySelection const& keys) {
  return keys ? select_tensors(source, keys) : source;
}

void require_alone(DenseReading dense) {
  if (dense == DenseReading::once) throw UsageError("dense tensors are read once by all ranks: not by one alone");
}

}  // namespace

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, MeshCoordinate const& coordinate,
               LoadOptions const& options) {
  require_alone(options.dense);
  auto state = allocate_slice(select(source, options.keys), mesh, coordinate, options);
  read_alone(state, reading_of(options, with_threads(options.call)), nullptr);
  require_pages(state, options);
  return state;
}

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, Communicator& world,
               LoadOptions const& options) {
  require_same_mesh(mesh, world);
  auto const reading = agree_on_reading(options, world, options.huge_pages);
  StateDict state;
  on_every_rank(world, [&] {
    state = allocate_slice(select(source, options.keys), mesh, mesh.coordinate(world.rank()), options);
  });
  read_together(state, {.mesh = mesh}, reading, world);
  if (options.huge_pages == HugePages::on) on_every_rank(world, [&] { require_pages(state, options); });
  return state;
}

FillReport fill(StateDict& state, FillOptions const& options) {
  require_alone(options.dense);
  require_consistent(state);
  return read_alone(state, reading_of(options, with_threads(options.call)), nullptr);
}

FillReport fill(StateDict& state, Communicator& world, FillOptions const& options) {
  on_every_rank(world, [&] { require_consistent(state, world); });
  require_same_mesh(state.mesh, world);
  auto const reading = agree_on_reading(options, world);
  require_same_checkpoint(*state.source, world);
  auto const once = reading.dense == DenseReading::once;
  auto const holdings = once ? agree_on_holdings(state, world) : Holdings{.mesh = state.mesh};
  return read_together(state, holdings, reading, world);
}

}  // namespace rankslice
