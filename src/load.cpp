#include "rankslice/load.hpp"

#include <fmt/format.h>

#include "io/memory.hpp"
#include "plan/plan.hpp"
#include "state/local_tensor.hpp"
#include "storage_reader.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

void require_cpu(Device device) {
  if (device == Device::cuda) throw DeviceError("--device cuda: this version loads on the CPU only");
}

ShardedTensor allocate(Parameter const& parameter, PlannedSlice const& planned, Mesh const& mesh) {
  auto tensor = place_local_tensor(parameter, planned, mesh);
  tensor.data = allocate_host(parameter.bytes(planned.slice, Form::native));
  return tensor;
}

StateDict load_slices(std::shared_ptr<Checkpoint const> const& checkpoint, Mesh const& mesh,
                      MeshCoordinate const& coordinate, LoadOptions const& options, Communicator* world) {
  require_cpu(options.device);
  auto const source = options.keys ? select_tensors(checkpoint, options.keys) : checkpoint;
  auto const& model = source->model;
  auto const plan = make_load_plan(model, source->storage.form, mesh, coordinate);
  StateDict state{.tensors = {}, .mesh = mesh, .coordinate = coordinate, .source = source, .read = {}};
  auto const digesting = options.verify == VerifyLevel::full;
  if (digesting) state.read = Digests(model);

  StorageReader reader(source->storage, model);
  Transfer transfer(model, source->storage.form, watch(options.call, "load", plan.bytes_read, world));
  for (auto const& planned : plan.slices) {
    auto const& parameter = model.parameters[planned.parameter];
    auto tensor = allocate(parameter, planned, mesh);
    NativeBox<std::byte> const box{.data = tensor.data.data.get(), .slice = planned.slice};
    auto digest = digesting ? std::optional<ParameterDigest>(std::in_place, model, parameter) : std::nullopt;
    DigestSink const sink{.digest = digest ? &*digest : nullptr, .sums = &state.read};
    reader.for_each_piece(planned, [&](StoredPiece const& piece, Slice const& slice, FileReader& file) {
      transfer.read(piece, slice, file, box, sink);
    });
    state.tensors.emplace(parameter.fqn, std::move(tensor));
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
  StateDict state;
  on_every_rank(world, [&] {
    if (mesh.ranks() != world.size()) {
      throw PlanError(fmt::format("a mesh of {} ranks cannot be loaded by {} ranks", mesh.ranks(), world.size()));
    }
    state = load_slices(source, mesh, mesh.coordinate(world.rank()), options, &world);
  });
  return state;
}

}  // namespace rankslice
