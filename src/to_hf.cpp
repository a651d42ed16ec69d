#include "rankslice/to_hf.hpp"

#include <algorithm>
#include <optional>

#include "copies.hpp"
#include "hf_files.hpp"
#include "hf_storage.hpp"
#include "hf_target.hpp"
#include "native_source.hpp"
#include "plan/plan.hpp"
#include "shared_output.hpp"
#include "slice_writer.hpp"
#include "state/consistency.hpp"
#include "verify/compare.hpp"
#include "verify/mesh_tables.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// What is to be written, and of which tensors.
struct Target {
  HfTarget files;
  std::vector<bool> taken;  // by tensor of the source
  std::vector<PlannedSlice> plan;
};

/// The slices of a plan of whose parameters anything is taken.
std::vector<PlannedSlice> needed(std::vector<PlannedSlice> plan, Model const& model, std::vector<bool> const& taken) {
  std::erase_if(plan, [&](PlannedSlice const& planned) {
    auto const& tensors = model.parameters[planned.parameter].tensors;
    return std::ranges::none_of(tensors, [&](std::uint32_t tensor) { return taken[tensor]; });
  });
  return plan;
}

Target plan_target(Checkpoint const& source, Mesh const& mesh, MeshCoordinate const& coordinate,
                   ExportOptions const& options) {
  auto taken = taken_tensors(source.model, options.keys);
  auto files = make_target(source, taken, options.max_file_bytes);
  auto plan = needed(make_save_plan(source.model, mesh, coordinate), source.model, taken);
  return {.files = std::move(files), .taken = std::move(taken), .plan = std::move(plan)};
}

/// Where the tensors go, below `folder`.
Storage target_storage(Model const& model, HfTarget const& target, std::string const& folder) {
  Storage storage{.form = Form::hf, .files = {}, .pieces = {}};
  for (auto const& file : target.catalog.files) {
    storage.files.push_back({.name = file.name, .path = folder + "/" + file.name, .size = file.size});
  }
  storage.pieces = hf_pieces(target.catalog, model);
  storage.partial = target.catalog.tensors.size() < model.tensors.size();
  return storage;
}

/// The digests of what is written; zero for what is left out.
DigestTable only(std::vector<bool> const& taken, DigestTable table) {
  for (std::size_t i = 0; i < taken.size(); ++i) {
    if (!taken[i]) std::ranges::fill(table.of(i), 0);
  }
  return table;
}

/// What stands between the written bytes and their final name. Collective.
using Check = std::function<void(Digests written)>;

ExportReport write_checkpoint(Model const& model, Target const& target, NativeSource& tensors,
                              std::string const& out_dir, Communicator& world, ExportOptions const& options,
                              Check const& check) {
  auto const& hf = target.files.hf;
  SharedOutput output(out_dir, StagedOutput::Kind::folder, options.overwrite, world);
  auto const storage = target_storage(model, target.files, output.path());
  auto const alive = watch({.stop = options.call.stop}, "to_hf", 0, &world);  // of what is no tensor
  StoredBytes bytes;
  on_every_rank(world, [&] {
    bytes = stored_bytes(storage, model, target.plan);
    if (world.rank() == 0) create_shards(hf, output.path(), alive);
  });

  auto const done = watch(options.call, "to_hf", bytes.wanted + bytes.read, &world);
  Digests written;
  on_every_rank(world, [&] { written = write_slices(model, target.plan, tensors, storage, done); });
  on_every_rank(world, [&] { check_read_back(model, target.plan, storage, written, done); });
  check(std::move(written));

  on_every_rank(world, [&] {
    if (world.rank() == 0) add_other_files(hf, output.path(), alive);
  });
  output.publish();
  return {.headers = hf.headers, .bytes_read = 0, .bytes_written = bytes.wanted, .files = hf.files.size()};
}

}  // namespace

ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options) {
  auto const& model = state.source->model;
  std::optional<HeldTensors> held;
  Target target;
  require_same_source(state, world);
  on_every_rank(world, [&] {
    require_consistent(state, world);
    held.emplace(state);
    target = plan_target(*state.source, state.mesh, state.coordinate, options);
  });
  auto const expected = digest_all_held(state, options.call, world);
  return write_checkpoint(model, target, *held, out_dir, world, options, [&](Digests written) {
    world.all_reduce(written.source.values(), Reduce::sum);
    auto const expected_source = only(target.taken, expected.source);
    on_every_rank(world, [&] { require_equal(model, {"held", expected_source}, {"written", written.source}); });
  });
}

ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options, VerifyLevel verify) {
  auto const& model = checkpoint.model;
  auto const mesh = make_mesh(world.size());
  Target target;
  on_every_rank(world, [&] { target = plan_target(checkpoint, mesh, mesh.coordinate(world.rank()), options); });
  if (verify == VerifyLevel::full) require_equal_copies(checkpoint, world, options.call);
  StreamedTensors streamed(checkpoint.storage, model);
  auto report = write_checkpoint(model, target, streamed, out_dir, world, options, [&](Digests const& written) {
    Digests read;
    read.source = only(target.taken, streamed.read().source);
    read.stored = only(target.taken, streamed.read().stored);
    on_every_rank(world, [&] {
      streamed.check_unchanged();
      // Of converted tensors only the values as the files hold them: a trained one need not be exact in fewer bits.
      require_equal(model, {"read", read.source}, {"written", written.source});
    });
    if (verify != VerifyLevel::full || !checkpoint.digests) return;
    world.all_reduce(read.source.values(), Reduce::sum);
    world.all_reduce(read.stored.values(), Reduce::sum);
    on_every_rank(world, [&] {
      require_equal(model, {"recorded", only(target.taken, checkpoint.digests->source)}, {"read", read.source});
      require_equal(model, {"recorded", only(target.taken, checkpoint.digests->stored)}, {"read", read.stored});
    });
  });
  report.bytes_read = plan_bytes(model, target.plan, checkpoint.storage.form);
  return report;
}

}  // namespace rankslice
