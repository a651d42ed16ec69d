#include "rankslice/load.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "rankslice/error.hpp"

#include "agreed_holdings.hpp"
#include "dense_ring.hpp"
#include "io/memory.hpp"
#include "plan/dense_shares.hpp"
#include "plan/plan.hpp"
#include "plan/row_exchange_plan.hpp"
#include "row_exchange.hpp"
#include "state/consistency.hpp"
#include "state/local_tensor.hpp"
#include "storage_reader.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

Buffer allocate(std::uint64_t bytes, std::shared_ptr<Device> const& device) {
  if (!device) return allocate_host(bytes);
  return {.data = device->allocate(bytes), .bytes = bytes, .device = device};
}

/// This rank's slice without values. Host memory is not touched: its pages come as they are read.
StateDict allocate_slice(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                         MeshCoordinate const& coordinate, std::shared_ptr<Device> const& device) {
  StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = source, .read = {}};
  for (auto const& planned : make_load_plan(source->model, source->storage.form, mesh, coordinate).slices) {
    auto const& parameter = source->model.parameters[planned.parameter];
    auto tensor = place_local_tensor(parameter, planned, mesh);
    tensor.data = allocate(parameter.bytes(planned.slice, Form::native), device);
    state.tensors.emplace(parameter.fqn, std::move(tensor));
  }
  return state;
}

/// A transfer to each device that tensors are on, and to host memory.
class Transfers {
 public:
  Transfers(Model const& model, Form form, BlockDone done) : model_(model), form_(form), done_(std::move(done)) {}

  [[nodiscard]] Transfer& to(Device* device) {
    return by_device_.try_emplace(device, model_, form_, done_, device).first->second;
  }
  /// Wait until what was started is done.
  void finish() {
    for (auto& [device, transfer] : by_device_) {
      if (device != nullptr) device->finish();
    }
  }
  /// The same after an error: the memory is the caller's again, and nothing may still be on its way there.
  void abandon() noexcept {
    for (auto& [device, transfer] : by_device_) {
      try {
        if (device != nullptr) device->finish();
      } catch (...) {  // the first error says more
      }
    }
  }

 private:
  Model const& model_;
  Form form_;
  BlockDone done_;
  std::map<Device*, Transfer> by_device_;
};

/// What is read how: what the ranks have alike of `LoadOptions` and `FillOptions`.
struct Reading {
  VerifyLevel level;
  DenseReading dense;
  CallOptions const& call;
};

/// By parameter; null for those that a state lacks.
std::vector<ShardedTensor const*> tensors_of(StateDict const& state) {
  std::vector<ShardedTensor const*> tensors(state.source->model.parameters.size());
  for (auto const& [fqn, tensor] : state.tensors) tensors[tensor.index] = &tensor;
  return tensors;
}

/// The pipeline: some of what a state holds is read in the order of the files, digested, converted and turned on its
/// way. Returns the digests.
Digests read_values(StateDict const& state, std::vector<PlannedSlice> const& slices, VerifyLevel level,
                    BlockDone const& done) {
  auto const& model = state.source->model;
  auto const& storage = state.source->storage;
  auto const tensors = tensors_of(state);
  auto read = digests(level) ? Digests(model) : Digests();
  read.without_codes = storage.form == Form::native;

  Transfers transfers(model, storage.form, done);
  try {
    read_pieces(storage, model, slices, digests(level) ? &read : nullptr, [&](PieceRead const& piece) {
      auto const& tensor = *tensors[slices[piece.item].parameter];
      NativeBox<std::byte> const box{.data = tensor.data.data.get(), .slice = tensor.slice()};
      transfers.to(tensor.data.device.get()).read(piece.piece, piece.slice, piece.files, box, piece.sink);
    });
    transfers.finish();
  } catch (...) {
    transfers.abandon();
    throw;
  }
  return read;
}

std::uint64_t bytes_to_read(StateDict const& state, std::vector<PlannedSlice> const& slices) {
  return stored_bytes(state.source->storage, state.source->model, slices).read;
}

/// One rank reads all that it holds.
FillReport read_alone(StateDict& state, Reading const& reading, Communicator* world) {
  state.read = {};  // of values that will be gone, whatever happens
  auto const slices = slices_held(state);
  auto const bytes = bytes_to_read(state, slices);
  state.read = read_values(state, slices, reading.level, watch(reading.call, "load", bytes, world));
  return {.bytes_read = bytes};
}

std::vector<Buffer> memory_of(StateDict const& state) {
  std::vector<Buffer> memory(state.source->model.parameters.size());
  for (auto const& [fqn, tensor] : state.tensors) memory[tensor.index] = tensor.data;
  return memory;
}

/// Every rank reads a share of the dense tensors that all hold, and of the short rows of experts that it shares with
/// others, and hands on what others need of it. Collective.
FillReport read_once(StateDict& state, Holdings const& holdings, Reading const& reading, Communicator& world) {
  auto const& model = state.source->model;
  DenseShares shares;
  RowExchangePlan rows;
  std::optional<DenseRing> ring;
  BlockDone done;
  Digests read;
  FillReport report;
  state.read = {};
  on_every_rank(world, [&] {
    shares = share_dense(model, state.source->storage.form, holdings, world.size());
    ring.emplace(model, shares, memory_of(state), world);
    rows = plan_row_exchange(state.source->storage, model, holdings, world.rank());
    auto slices = slices_read(shares, slices_held(state), world.rank());
    std::erase_if(slices,
                  [&](auto const& item) { return std::ranges::binary_search(rows.parameters, item.parameter); });
    auto const exchanged = row_traffic(model, rows);
    report = {.bytes_read = bytes_to_read(state, slices) + exchanged.read,
              .bytes_received = ring->bytes() + exchanged.received};
    done = watch(reading.call, "load", report.bytes_read + report.bytes_received, &world);
    read = read_values(state, slices, reading.level, done);
  });
  exchange_rows(state, rows, digests(reading.level) ? &read : nullptr, done, world);
  ring->hand_around(done);
  if (digests(reading.level)) add_shares_of_all(read, model, shares, world);
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
Reading reading_of(Options const& options) {
  return {.level = options.verify, .dense = options.dense, .call = options.call};
}

/// The same on every rank, with the choice made. Collective. @throws PlanError, UsageError
template <typename Options>
Reading agree_on_reading(Options const& options, Communicator& world) {
  auto reading = reading_of(options);
  require_same_options(fmt::format("verify level {}, dense {}", name(reading.level), name(reading.dense)), world);
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
  auto state = allocate_slice(select(source, options.keys), mesh, coordinate, options.device);
  read_alone(state, reading_of(options), nullptr);
  return state;
}

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, Communicator& world,
               LoadOptions const& options) {
  require_same_mesh(mesh, world);
  auto const reading = agree_on_reading(options, world);
  StateDict state;
  on_every_rank(world, [&] {
    state = allocate_slice(select(source, options.keys), mesh, mesh.coordinate(world.rank()), options.device);
  });
  read_together(state, {.mesh = mesh}, reading, world);
  return state;
}

FillReport fill(StateDict& state, FillOptions const& options) {
  require_alone(options.dense);
  require_consistent(state);
  return read_alone(state, reading_of(options), nullptr);
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
