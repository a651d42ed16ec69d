#include "rankslice/load.hpp"

#include <fmt/format.h>

#include "io/memory.hpp"
#include "plan/plan.hpp"
#include "storage_reader.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

void require_cpu(Device device) {
  if (device == Device::cuda) throw DeviceError("--device cuda: this version loads on the CPU only");
}

ShardedTensor allocate(Parameter const& parameter, PlannedPart const& planned, Mesh const& mesh) {
  ShardedTensor tensor{.parameter = parameter,
                       .local_shape = parameter.shape,
                       .offsets = Shape(parameter.shape.size(), 0),
                       .placements = std::vector<Placement>(3),
                       .data = {},
                       .index = planned.parameter};
  if (parameter.stacked_experts) {
    tensor.local_shape[0] = planned.part.size();
    tensor.offsets[0] = planned.part.begin;
    tensor.placements[2] = {.kind = Placement::Kind::shard, .dim = 0};
    // Rule 16: a mesh with more dimensions than `ep` has Shard(1) on `ep_shard`, even when that has one rank.
    if (mesh.ep_replicate > 1 || mesh.ep_shard > 1) tensor.placements[1] = {.kind = Placement::Kind::shard, .dim = 1};
  }
  tensor.data = allocate_host(planned.part.size() * parameter.part_bytes(Form::native));
  return tensor;
}

StateDict load_slice(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh,
                     MeshCoordinate const& coordinate, LoadOptions const& options, Communicator* world) {
  require_cpu(options.device);
  auto const& parameters = source->parameters;
  auto const plan = make_load_plan(parameters, source->storage.form, mesh, coordinate, options.keys);
  StateDict state{.tensors = {},
                  .mesh = mesh,
                  .coordinate = coordinate,
                  .source = source,
                  .selected = std::vector<bool>(parameters.size()),
                  .read = {}};
  auto const digesting = options.verify == VerifyLevel::full;
  if (digesting) state.read = Digests(parameters);

  StorageReader reader(source->storage, parameters);
  Transfer transfer(watch(options.call, "load", plan.bytes_read, world));
  for (auto const& planned : plan.parts) {
    auto const& parameter = parameters[planned.parameter];
    auto tensor = allocate(parameter, planned, mesh);
    auto digest = digesting ? std::optional<ParameterDigest>(std::in_place, parameter) : std::nullopt;
    DigestSink const sink{.digest = digest ? &*digest : nullptr, .sums = &state.read, .index = planned.parameter};
    reader.for_each_stretch(planned, [&](Range part, FileReader& file, TensorPlace place) {
      auto const skipped = (part.begin - planned.part.begin) * parameter.part_bytes(Form::native);
      transfer.read(parameter, part, file, place, tensor.data.data.get() + skipped, sink);
    });
    state.tensors.emplace(parameter.fqn, std::move(tensor));
    state.selected[planned.parameter] = true;
  }
  reader.check_unchanged();
  return state;
}

}  // namespace

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, MeshCoordinate const& coordinate,
               LoadOptions const& options) {
  return load_slice(source, mesh, coordinate, options, nullptr);
}

StateDict load(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, Communicator& world,
               LoadOptions const& options) {
  StateDict state;
  on_every_rank(world, [&] {
    if (mesh.ranks() != world.size()) {
      throw PlanError(fmt::format("a mesh of {} ranks cannot be loaded by {} ranks", mesh.ranks(), world.size()));
    }
    state = load_slice(source, mesh, mesh.coordinate(world.rank()), options, &world);
  });
  return state;
}

}  // namespace rankslice
