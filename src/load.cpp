#include "rankslice/load.hpp"

#include <fmt/format.h>

#include <map>

#include "rankslice/error.hpp"

#include "io/memory.hpp"
#include "plan/plan.hpp"
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

/// The pipeline: what a state holds is read in the order of the files, digested, converted and turned on its way.
void read_values(StateDict& state, VerifyLevel level, CallOptions const& call, Communicator* world) {
  auto const& model = state.source->model;
  auto const& storage = state.source->storage;
  std::vector<ShardedTensor const*> tensors;
  for (auto const& [fqn, tensor] : state.tensors) tensors.push_back(&tensor);
  auto const plan = make_load_plan(model, storage.form, slices_held(state));
  state.read = {};  // of values that will be gone, whatever happens
  auto read = digests(level) ? Digests(model) : Digests();
  read.without_codes = storage.form == Form::native;

  Transfers transfers(model, storage.form, watch(call, "load", plan.bytes_read, world));
  try {
    read_pieces(storage, model, plan.slices, digests(level) ? &read : nullptr, [&](PieceRead const& piece) {
      auto const& memory = tensors[piece.item]->data;
      NativeBox<std::byte> const box{.data = memory.data.get(), .slice = plan.slices[piece.item].slice};
      transfers.to(memory.device.get()).read(piece.piece, piece.slice, piece.files, box, piece.sink);
    });
    transfers.finish();
  } catch (...) {
    transfers.abandon();
    throw;
  }
  state.read = std::move(read);
}

StateDict load_slice(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                     MeshCoordinate const& coordinate, LoadOptions const& options, Communicator* world) {
  auto const selected = options.keys ? select_tensors(source, options.keys) : source;
  auto state = allocate_slice(selected, mesh, coordinate, options.device);
  read_values(state, options.verify, options.call, world);
  return state;
}

void require_same_level(VerifyLevel level, Communicator& world) {
  require_same_options(fmt::format("verify level {}", name(level)), world);
}

}  // namespace

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, MeshCoordinate const& coordinate,
               LoadOptions const& options) {
  return load_slice(source, mesh, coordinate, options, nullptr);
}

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, Communicator& world,
               LoadOptions const& options) {
  require_same_mesh(mesh, world);
  require_same_level(options.verify, world);
  StateDict state;
  on_every_rank(world, [&] { state = load_slice(source, mesh, mesh.coordinate(world.rank()), options, &world); });
  return state;
}

void fill(StateDict& state, FillOptions const& options) {
  require_consistent(state);
  read_values(state, options.verify, options.call, nullptr);
}

void fill(StateDict& state, Communicator& world, FillOptions const& options) {
  on_every_rank(world, [&] { require_consistent(state, world); });
  require_same_mesh(state.mesh, world);
  require_same_level(options.verify, world);
  require_same_checkpoint(*state.source, world);
  on_every_rank(world, [&] { read_values(state, options.verify, options.call, &world); });
}

}  // namespace rankslice
