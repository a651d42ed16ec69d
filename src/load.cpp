#include "rankslice/load.hpp"

#include <fmt/format.h>

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

/// This rank's tensors without values. Host memory is not touched: its pages come as they are read.
std::vector<ShardedTensor> allocate_tensors(Model const& model, LoadPlan const& plan, Mesh const& mesh,
                                            std::shared_ptr<Device> const& device) {
  std::vector<ShardedTensor> tensors;
  tensors.reserve(plan.slices.size());
  for (auto const& planned : plan.slices) {
    auto const& parameter = model.parameters[planned.parameter];
    auto& tensor = tensors.emplace_back(place_local_tensor(parameter, planned, mesh));
    tensor.data = allocate(parameter.bytes(planned.slice, Form::native), device);
  }
  return tensors;
}

StateDict load_slices(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                      MeshCoordinate const& coordinate, LoadOptions const& options, Communicator* world) {
  auto const selected = options.keys ? select_tensors(source, options.keys) : source;
  auto const& model = selected->model;
  auto const& storage = selected->storage;
  auto const plan = make_load_plan(model, storage.form, mesh, coordinate);
  StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = selected, .read = {}};
  auto const digesting = digests(options.verify);
  if (digesting) state.read = Digests(model);
  state.read.without_codes = storage.form == Form::native;

  auto tensors = allocate_tensors(model, plan, mesh, options.device);
  Transfer transfer(model, storage.form, watch(options.call, "load", plan.bytes_read, world), options.device.get());
  read_pieces(storage, model, plan.slices, digesting ? &state.read : nullptr, [&](PieceRead const& read) {
    NativeBox<std::byte> const box{.data = tensors[read.item].data.data.get(), .slice = plan.slices[read.item].slice};
    transfer.read(read.piece, read.slice, read.files, box, read.sink);
  });
  if (options.device) options.device->finish();
  for (auto& tensor : tensors) state.tensors.emplace(tensor.parameter.fqn, std::move(tensor));
  return state;
}

}  // namespace

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, MeshCoordinate const& coordinate,
               LoadOptions const& options) {
  return load_slices(source, mesh, coordinate, options, nullptr);
}

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, Communicator& world,
               LoadOptions const& options) {
  require_same_mesh(mesh, world);
  require_same_options(fmt::format("verify level {}", name(options.verify)), world);
  StateDict state;
  on_every_rank(world, [&] { state = load_slices(source, mesh, mesh.coordinate(world.rank()), options, &world); });
  return state;
}

}  // namespace rankslice
