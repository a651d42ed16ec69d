#include "rankslice/to_hf.hpp"

#include <optional>

#include "copies.hpp"
#include "hf_files.hpp"
#include "hf_storage.hpp"
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

/// Where the tensors go: the source's own files, below `folder`.
Storage target_files(Checkpoint const& source, std::string const& folder) {
  Storage target{.form = Form::hf, .files = {}, .pieces = {}};
  for (auto const& file : source.catalog.files) {
    target.files.push_back({.name = file.name, .path = folder + "/" + file.name, .size = file.size});
  }
  target.pieces = hf_pieces(source.catalog, source.model);
  return target;
}

/// What stands between the written bytes and their final name. Collective.
using Check = std::function<void(Digests written)>;

ExportReport write_checkpoint(Checkpoint const& source, std::vector<PlannedSlice> const& plan, NativeSource& tensors,
                              std::string const& out_dir, Communicator& world, SaveOptions const& options,
                              Check const& check) {
  SharedOutput output(out_dir, StagedOutput::Kind::folder, options.overwrite, world);
  auto const bytes = plan_bytes(source.model, plan, Form::hf);
  auto const done = watch(options.call, "to_hf", 2 * bytes, &world);
  auto const alive = watch({.stop = options.call.stop}, "to_hf", 0, &world);  // of what is no tensor
  on_every_rank(world, [&] {
    if (world.rank() == 0) create_shards(source.hf, output.path(), alive);
  });

  auto const target = target_files(source, output.path());
  Digests written;
  on_every_rank(world, [&] { written = write_slices(source.model, plan, tensors, target, done); });
  on_every_rank(world, [&] { check_read_back(source.model, plan, target, written, done); });
  check(std::move(written));

  on_every_rank(world, [&] {
    if (world.rank() == 0) add_other_files(source.hf, output.path(), alive);
  });
  output.publish();
  return {.bytes_read = 0, .bytes_written = bytes, .files = source.hf.files.size()};
}

}  // namespace

ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   SaveOptions const& options) {
  auto const& model = state.source->model;
  std::optional<HeldTensors> held;
  std::vector<PlannedSlice> plan;
  on_every_rank(world, [&] {
    require_consistent(state, world);
    held.emplace(state);
    plan = make_save_plan(model, state.mesh, state.coordinate);
  });
  auto const expected = digest_all_held(state, options.call, world);
  return write_checkpoint(*state.source, plan, *held, out_dir, world, options, [&](Digests written) {
    world.all_reduce(written.source.values(), Reduce::sum);
    on_every_rank(world, [&] { require_equal(model, {"held", expected.source}, {"written", written.source}); });
  });
}

ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   SaveOptions const& options, VerifyLevel verify) {
  auto const& model = checkpoint.model;
  auto const mesh = make_mesh(world.size());
  std::vector<PlannedSlice> plan;
  on_every_rank(world, [&] { plan = make_save_plan(model, mesh, mesh.coordinate(world.rank())); });
  if (verify == VerifyLevel::full) require_equal_copies(checkpoint, world, options.call);
  StreamedTensors streamed(checkpoint.storage, model);
  auto report = write_checkpoint(checkpoint, plan, streamed, out_dir, world, options, [&](Digests const& written) {
    auto read = streamed.read();
    on_every_rank(world, [&] {
      streamed.check_unchanged();
      // Of converted tensors only the values as the files hold them: a trained one need not be exact in fewer bits.
      require_equal(model, {"read", read.source}, {"written", written.source});
    });
    if (verify != VerifyLevel::full || !checkpoint.digests) return;
    world.all_reduce(read.source.values(), Reduce::sum);
    world.all_reduce(read.stored.values(), Reduce::sum);
    on_every_rank(world, [&] {
      require_equal(model, {"recorded", checkpoint.digests->source}, {"read", read.source});
      require_equal(model, {"recorded", checkpoint.digests->stored}, {"read", read.stored});
    });
  });
  report.bytes_read = plan_bytes(model, plan, checkpoint.storage.form);
  return report;
}

}  // namespace rankslice
