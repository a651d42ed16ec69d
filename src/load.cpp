#include "rankslice/load.hpp"

#include "io/memory.hpp"
#include "plan/plan.hpp"
#include "state/consistency.hpp"
#include "state/local_tensor.hpp"
#include "storage_reader.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

void require_cpu(Device device) {
  if (device == Device::cuda) throw DeviceError("--device cuda: this version loads on the CPU only");
}

/// Allocate a local tensor and read it. Digests what is read into `sums`, if given.
ShardedTensor load_tensor(Model const& model, PlannedSlice const& planned, Mesh const& mesh, StorageReader& reader,
                          Transfer& transfer, Digests* sums) {
  auto const& parameter = model.parameters[planned.parameter];
  auto tensor = place_local_tensor(parameter, planned, mesh);
  tensor.data = allocate_host(parameter.bytes(planned.slice, Form::native));

  NativeBox<std::byte> const box{.data = tensor.data.data.get(), .slice = planned.slice};
  auto digest = sums != nullptr ? std::optional<ParameterDigest>(std::in_place, model, parameter) : std::nullopt;
  DigestSink const sink{.digest = digest ? &*digest : nullptr, .sums = sums};
  reader.for_each_piece(planned, [&](StoredPiece const& piece, Slice const& slice, PieceFiles const& files) {
    transfer.read(piece, slice, files, box, sink);
  });
  return tensor;
}

StateDict load_slices(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                      MeshCoordinate const& coordinate, LoadOptions const& options, Communicator* world) {
  require_cpu(options.device);
  auto const selected = options.keys ? select_tensors(source, options.keys) : source;
  auto const& model = selected->model;
  auto const& storage = selected->storage;
  auto const plan = make_load_plan(model, storage.form, mesh, coordinate);
  StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = selected, .read = {}};
  auto const digesting = options.verify == VerifyLevel::full;
  if (digesting) state.read = Digests(model);
  state.read.without_codes = storage.form == Form::native;

  StorageReader reader(storage, model);
  Transfer transfer(model, storage.form, watch(options.call, "load", plan.bytes_read, world));
  for (auto const& planned : plan.slices) {
    auto tensor = load_tensor(model, planned, mesh, reader, transfer, digesting ? &state.read : nullptr);
    state.tensors.emplace(tensor.parameter.fqn, std::move(tensor));
  }
  reader.check_unchanged();
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
  StateDict state;
  on_every_rank(world, [&] { state = load_slices(source, mesh, mesh.coordinate(world.rank()), options, &world); });
  return state;
}

}  // namespace rankslice
