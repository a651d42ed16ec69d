#include "rankslice/to_hf.hpp"

#include <algorithm>
#include <optional>

#include "checkpoint_parts.hpp"
#include "copies.hpp"
#include "hf_files.hpp"
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

struct ExportPlan {
  HfTarget target;
  std::vector<bool> taken;           // which tensors of the source
  std::vector<PlannedSlice> slices;  // what this rank writes
};

ExportPlan plan_export(Checkpoint const& source, Mesh const& mesh, MeshCoordinate const& coordinate,
                       ExportOptions const& options) {
  auto const& model = source.model;
  ExportPlan plan{.target = {}, .taken = taken_tensors(model, options.keys), .slices = {}};
  plan.target = make_target(source, plan.taken, options.max_file_bytes);
  plan.slices = make_save_plan(model, mesh, coordinate);
  std::erase_if(plan.slices, [&](PlannedSlice const& planned) {
    auto const is_taken = [&](std::uint32_t tensor) { return plan.taken[tensor]; };
    return std::ranges::none_of(model.parameters[planned.parameter].tensors, is_taken);
  });
  return plan;
}

/// Every rank's part of the same files. Collective.
ExportPlan agree_on_export(Checkpoint const& source, Mesh const& mesh, Communicator& world,
                           ExportOptions const& options) {
  ExportPlan plan;
  on_every_rank(world, [&] { plan = plan_export(source, mesh, mesh.coordinate(world.rank()), options); });
  require_same(fingerprint(plan.target.hf),
               "would write other files than rank 0; keys and max_file_bytes must be the same on every rank", world);
  return plan;
}

/// Digests without those of tensors that are left out.
Digests without_left_out(std::vector<bool> const& taken, Digests digests) {
  for (std::size_t i = 0; i < taken.size(); ++i) {
    if (taken[i]) continue;
    std::ranges::fill(digests.source.of(i), 0);
    std::ranges::fill(digests.stored.of(i), 0);
  }
  return digests;
}

/// A checkpoint on its way into a folder. Every function is collective.
class Export {
 public:
  Export(Model const& model, ExportPlan const& plan, std::string const& out_dir, Communicator& world,
         ExportOptions const& options)
      : model_(model),
        plan_(plan),
        world_(world),
        options_(options),
        alive_(watch({.stop = options.call.stop}, "to_hf", 0, &world)),
        output_(out_dir, StagedOutput::Kind::folder, options.overwrite, world) {}

  /// All files at their full size, the tensors in them, and these read back. Returns the digests of what this rank
  /// wrote.
  [[nodiscard]] Digests write(NativeSource& tensors) {
    auto const storage = target_storage(plan_.target, model_, output_.path());
    on_every_rank(world_, [&] {
      bytes_ = stored_bytes(storage, model_, plan_.slices);
      if (world_.rank() == 0) create_hf_files(plan_.target.hf, output_.path(), alive_);
    });
    auto const done = watch(options_.call, "to_hf", bytes_.wanted + bytes_.read, &world_);
    Digests written;
    on_every_rank(world_, [&] { written = write_slices(model_, plan_.slices, tensors, storage, done); });
    on_every_rank(world_, [&] { check_read_back(model_, plan_.slices, storage, written, done); });
    return written;
  }

  /// Side files, the index, and the final name.
  [[nodiscard]] ExportReport publish() {
    auto const& hf = plan_.target.hf;
    on_every_rank(world_, [&] {
      if (world_.rank() == 0) add_other_files(hf, output_.path(), alive_);
    });
    output_.publish();
    return {.headers = hf.headers, .bytes_read = 0, .bytes_written = bytes_.wanted, .files = hf.files.size()};
  }

 private:
  Model const& model_;
  ExportPlan const& plan_;
  Communicator& world_;
  ExportOptions const& options_;
  BlockDone alive_;  // of what is no tensor
  SharedOutput output_;
  StoredBytes bytes_;
};

}  // namespace

ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options) {
  require_agreement(state, world);
  auto const& model = state.source->model;
  std::optional<HeldTensors> held;
  on_every_rank(world, [&] { held.emplace(state); });
  auto const plan = agree_on_export(*state.source, state.mesh, world, options);
  auto const expected = without_left_out(plan.taken, digest_all_held(state, options.call, world));

  Export output(model, plan, out_dir, world, options);
  auto written = output.write(*held);
  world.all_reduce(written.source.values(), Reduce::sum);
  on_every_rank(world, [&] { require_equal(model, {"held", expected.source}, {"written", written.source}); });
  return output.publish();
}

ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options, VerifyLevel verify) {
  auto const& model = checkpoint.model;
  auto const plan = agree_on_export(checkpoint, make_mesh(world.size()), world, options);
  if (verify == VerifyLevel::full) require_equal_copies(checkpoint, world, options.call);
  StreamedTensors streamed(checkpoint.storage, model);

  Export output(model, plan, out_dir, world, options);
  auto const written = output.write(streamed);
  auto read = without_left_out(plan.taken, streamed.read());
  on_every_rank(world, [&] {
    streamed.check_unchanged();
    // Of converted tensors only the values as the files hold them: a trained one need not be exact in fewer bits.
    require_equal(model, {"read", read.source}, {"written", written.source});
  });
  if (verify == VerifyLevel::full && checkpoint.digests) {
    auto const recorded = without_left_out(plan.taken, *checkpoint.digests);
    world.all_reduce(read.source.values(), Reduce::sum);
    world.all_reduce(read.stored.values(), Reduce::sum);
    on_every_rank(world, [&] {
      require_equal(model, {"recorded", recorded.source}, {"read", read.source});
      require_equal(model, {"recorded", recorded.stored}, {"read", read.stored});
    });
  }
  auto report = output.publish();
  report.bytes_read = plan_bytes(model, plan.slices, checkpoint.storage.form);
  return report;
}

}  // namespace rankslice
