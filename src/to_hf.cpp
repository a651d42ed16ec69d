#include "rankslice/to_hf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <optional>
#include <string_view>

#include "agreed_holdings.hpp"
#include "checkpoint_parts.hpp"
#include "copied_slices.hpp"
#include "copies.hpp"
#include "core/fingerprint.hpp"
#include "export_plan.hpp"
#include "exported_state.hpp"
#include "gathered_tensors.hpp"
#include "hf_files.hpp"
#include "native_source.hpp"
#include "reread.hpp"
#include "shared_output.hpp"
#include "slice_writer.hpp"
#include "state/consistency.hpp"
#include "verify/compare.hpp"
#include "verify/rank_tables.hpp"
#include "verify/shared_mismatches.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

struct ExportPlan {
  ExportTarget target;
  ExportSlices slices;
  std::optional<GatherPlan> gather;  // where one rank writes what all of them have, …
  std::vector<PlannedSlice> sent;    // … and of that this one
  std::optional<Storage> originals;  // of what is copied
  std::string copied_from;           // their folder
  std::optional<Digests> recorded;   // of them, in the order of the target's tensors, if they have a manifest
  std::string recorded_by;           // that
};

constexpr int kWriter = 0;  // of what is gathered

/// Of a target that has copies.
bool is_copied(ExportTarget const& target, std::size_t tensor) {
  return !target.model.parameters[target.model.tensors[tensor].parameter].invertible();
}

/// All that is written goes through one rank.
void gather_slices(ExportPlan& plan, GatherOwners owners, int rank) {
  auto whole = plan_export(plan.target, {.mesh = make_mesh(1)}, 0);
  owners.receiver = kWriter;
  plan.gather = plan_gather(plan.target.model, whole.computed, owners);
  plan.sent = slices_sent_by(*plan.gather, rank);
  auto const writes = rank == kWriter;
  plan.slices.computed = writes ? std::move(whole.computed) : std::vector<PlannedSlice>();
  plan.slices.copied = writes ? std::move(whole.copied) : std::vector<PlannedSlice>();
}

/// Digests of what is copied, without those of all else.
DigestTable of_copies(ExportTarget const& target, Digests const& digests) {
  auto copied = target.taken;
  for (std::size_t i = 0; i < copied.size(); ++i) copied[i] = copied[i] && is_copied(target, i);
  return without_left_out(copied, digests).source;
}

/// Where the originals are, and what is known of them.
void find_originals(ExportPlan& plan, Checkpoint const& from) {
  auto const& model = plan.target.model;
  plan.originals = storage_of(model, from);
  plan.copied_from = from.path;
  if (!from.digests) return;
  plan.recorded_by = fmt::format("{} of {}", from.digests_from, from.path);
  plan.recorded.emplace(model);
  std::map<std::string_view, std::size_t> by_key;
  for (std::size_t i = 0; i < from.model.tensors.size(); ++i) by_key.emplace(from.model.tensors[i].key, i);
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    std::ranges::copy(from.digests->source.of(by_key.at(model.tensors[i].key)), plan.recorded->source.of(i).begin());
  }
}

/// Every rank's part of the same files. Collective.
ExportPlan agree_on_export(Checkpoint const& source, GatherOwners const& owners, Communicator& world,
                           ExportOptions const& options) {
  ExportPlan plan;
  std::string originals = "none";
  on_every_rank(world, [&] {
    plan.target = make_export_target(source, options);
    plan.slices = plan_export(plan.target, owners.holdings, world.rank());
    if (options.gather) gather_slices(plan, owners, world.rank());
    if (!has_copies(plan.target)) return;
    auto const& from = copied_from(source, options);
    find_originals(plan, from);
    originals = checkpoint_fingerprint(from);
  });
  require_same(fingerprint(plan.target.files.hf) + (options.gather ? "1" : "0"),
               "would write other files than rank 0; options must be the same on every rank", world);
  require_same(xxh3_128(std::as_bytes(std::span(originals))),
               fmt::format("would copy from another checkpoint than rank 0, or knows other digests of it: {}, {}",
                           plan.copied_from, plan.recorded ? plan.recorded_by : "no recorded digests"),
               world);
  return plan;
}

/// The digests of values as they are held: of what was converted those of the results.
DigestTable as_held(Model const& model, Digests const& digests) {
  auto held = digests.source;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (model.parameters[model.tensors[i].parameter].converted()) {
      std::ranges::copy(digests.stored.of(i), held.of(i).begin());
    }
  }
  return held;
}

/// A checkpoint on its way into a folder. Every function is collective.
class Export {
 public:
  /// `compared`: the digests of the originals, in all ranks together, when what is held was compared with them.
  Export(ExportPlan const& plan, std::optional<Digests> compared, std::string const& out_dir, Communicator& world,
         ExportOptions const& options)
      : model_(plan.target.model),
        plan_(plan),
        compared_(std::move(compared)),
        world_(world),
        options_(options),
        alive_(watch({.stop = options.call.stop}, "to_hf", 0, &world)),
        output_(out_dir, StagedOutput::Kind::folder, options.overwrite, world) {}

  /// All files at their full size, the tensors in them, and these read back. Returns the digests of what this rank
  /// wrote of `tensors`.
  [[nodiscard]] Digests write(NativeSource& tensors) {
    auto const storage = target_storage(plan_.target.files, model_, output_.path());
    auto const& [computed, compared, copied] = plan_.slices;
    on_every_rank(world_, [&] {
      bytes_ = stored_bytes(storage, model_, computed);
      copied_bytes_ = stored_bytes(storage, model_, copied).wanted;
      if (world_.rank() == 0) create_hf_files(plan_.target.files.hf, output_.path(), alive_);
    });
    auto const done = watch(options_.call, "to_hf", bytes_to_move(), &world_);
    auto const written = plan_.gather ? write_gathered(tensors, storage, done) : write_own(tensors, storage, done);
    on_every_rank(world_, [&] { check_read_back(model_, computed, storage, written, done); });
    if (!plan_.originals) return written;
    on_every_rank(world_, [&] { copied_ = copy_slices(model_, copied, *plan_.originals, storage, done); });
    on_every_rank(world_, [&] { check_copies(model_, copied, storage, copied_, done); });
    require_copied();
    return written;
  }

  /// Side files, the index, and the final name. `streamed`: bytes that were read of the tensors; none of memory.
  [[nodiscard]] ExportReport publish(std::uint64_t streamed) {
    auto const& hf = plan_.target.files.hf;
    on_every_rank(world_, [&] {
      if (world_.rank() == 0) add_other_files(hf, output_.path(), alive_);
    });
    output_.publish();
    return {.headers = hf.headers,
            .bytes_read = streamed + originals_read(),
            .bytes_written = bytes_.wanted + copied_bytes_,
            .files = hf.files.size()};
  }

 private:
  Digests write_own(NativeSource& tensors, Storage const& storage, BlockDone const& done) {
    Digests written;
    on_every_rank(world_, [&] { written = write_slices(model_, plan_.slices.computed, tensors, storage, done); });
    return written;
  }

  /// Of all passes over tensors; of one that only sends, those that it sends.
  [[nodiscard]] std::uint64_t bytes_to_move() const {
    if (plan_.gather && world_.rank() != kWriter) return plan_bytes(model_, plan_.sent, Form::native);
    return bytes_.wanted + bytes_.read + 2 * copied_bytes_;
  }

  /// On one rank; the others send what they have.
  Digests write_gathered(NativeSource& tensors, Storage const& storage, BlockDone const& done) {
    GatherPaths const paths(route_to(kWriter, world_.size()), world_);
    std::optional<SliceWriter> writer;
    std::optional<GatheredTensors> gathered;
    on_every_rank(world_, [&] {
      writer.emplace(model_, storage, done);
      gathered.emplace(model_, *plan_.gather, paths, tensors, world_.rank() == kWriter ? alive_ : done);
    });
    gathered->gather([&](std::vector<PlannedSlice> const& slices, NativeSource& all) { writer->write(slices, all); });
    Digests written;
    on_every_rank(world_, [&] { written = writer->finish(); });
    return written;
  }

  /// What was copied is what was compared before, and what is recorded of it.
  void require_copied() {
    world_.all_reduce(copied_.source.values(), Reduce::sum);
    on_every_rank(world_, [&] {
      auto const require = [&](std::string_view name, std::optional<Digests> const& digests) {
        if (!digests) return;
        auto const expected = of_copies(plan_.target, *digests);
        require_equal(model_, NamedTable{name, expected}, NamedTable{"copied", copied_.source});
      };
      require("compared", compared_);
      require(plan_.recorded_by, plan_.recorded);
    });
  }

  /// Originals count once for comparing and once for copying.
  [[nodiscard]] std::uint64_t originals_read() const {
    auto const copied = plan_bytes(model_, plan_.slices.copied, Form::hf);
    return compared_ ? copied + plan_bytes(model_, plan_.slices.compared, Form::hf) : copied;
  }

  Model const& model_;
  ExportPlan const& plan_;
  std::optional<Digests> compared_;
  Communicator& world_;
  ExportOptions const& options_;
  BlockDone alive_;  // of what is no tensor
  SharedOutput output_;
  StoredBytes bytes_;
  std::uint64_t copied_bytes_ = 0;
  Digests copied_;
};

/// What cannot be computed back is still what the originals give, and these are what was `loaded`, if that is known:
/// other codes and scales can give the same values. Returns the digests of the originals. Collective.
Digests compare_with_originals(ExportPlan const& plan, NativeSource& held, std::optional<Digests> const& loaded,
                               CallOptions const& call, Communicator& world) {
  Digests originals;
  auto const& model = plan.target.model;
  auto const bytes = plan_bytes(model, plan.slices.compared, Form::native);
  auto const done = watch(call, "verify", bytes, &world);
  on_every_rank(world,
                [&] { originals = require_unchanged(model, plan.slices.compared, held, *plan.originals, done); });
  world.all_reduce(originals.source.values(), Reduce::sum);
  if (!loaded || loaded->without_codes) return originals;
  on_every_rank(world, [&] {
    require_equal(model, NamedTable{"loaded", of_copies(plan.target, *loaded)},
                  NamedTable{plan.copied_from, of_copies(plan.target, originals)});
  });
  return originals;
}

/// What one rank wrote of all that the ranks read can be compared with all of it only. Collective.
void sum_over_ranks(std::initializer_list<Digests*> tables, Communicator& world) {
  for (auto* const digests : tables) {
    world.all_reduce(digests->source.values(), Reduce::sum);
    world.all_reduce(digests->stored.values(), Reduce::sum);
  }
}

/// Write what a checkpoint has, under its own model, and prove that it is what was read. Collective.
void write_as_read(Checkpoint const& source, ExportPlan const& plan, StreamedTensors& streamed, Export& output,
                   Communicator& world) {
  auto const& taken = plan.target.taken;
  auto written = output.write(streamed);
  auto read = without_left_out(taken, streamed.read());
  if (plan.gather) sum_over_ranks({&read, &written}, world);
  on_every_rank(world, [&] {
    streamed.check_unchanged();
    // Of converted tensors only the values as the files hold them: a trained one need not be exact in fewer bits.
    require_equal(source.model, NamedTable{"read", read.source}, NamedTable{"written", written.source});
    require_fitting(source, taken, read, written);
  });
}

/// The same under the model of the target: what was read is what was handed on, and that is what was written.
/// Collective.
void write_converted(Model const& model, ExportPlan const& plan, StreamedTensors& streamed, Export& output,
                     Communicator& world) {
  auto const& target = plan.target;
  DigestedTensors as_read(streamed, model);
  DigestedTensors as_exported(as_read, target.model);
  auto written = output.write(as_exported);
  auto handed_on = without_left_out(target.taken, as_exported.given());
  if (plan.gather) sum_over_ranks({&handed_on, &written}, world);
  on_every_rank(world, [&] {
    streamed.check_unchanged();
    require_equal(model, NamedTable{"read", as_held(model, streamed.read())},
                  NamedTable{"handed on", as_held(model, as_read.given())});
    require_equal(target.model, NamedTable{"handed on", handed_on.source}, NamedTable{"written", written.source});
  });
}

/// What of a checkpoint a rank streams to write its part of an export, or to send it to who writes.
std::vector<PlannedSlice> streamed_slices(Checkpoint const& source, ExportPlan const& plan, int ranks, int rank) {
  auto slices = plan_export(plan.target, {.mesh = make_mesh(ranks)}, rank);
  auto streamed = plan.gather ? slices_sent_by(*plan.gather, rank) : std::move(slices.computed);
  auto const compares = plan.originals && source.storage.form == Form::native;
  if (compares) streamed.insert(streamed.end(), slices.compared.begin(), slices.compared.end());
  return streamed;
}

/// Which tensors of a checkpoint are streamed in full: of one in the form of its files not those that are copied.
std::vector<bool> tensors_streamed(Checkpoint const& source, ExportTarget const& target) {
  auto streamed = tensors_to_read(target, source.model);
  if (source.storage.form == Form::native || !has_copies(target)) return streamed;
  for (std::size_t i = 0; i < streamed.size(); ++i) streamed[i] = streamed[i] && !is_copied(target, i);
  return streamed;
}

/// What was streamed is the same when another rank reads it. Collective. @throws VerifyError
Reread reread_streamed(Checkpoint const& source, ExportPlan const& plan, Digests const& read, CallOptions const& call,
                       Communicator& world) {
  auto const streamed_by = [&](int rank) { return streamed_slices(source, plan, world.size(), rank); };
  VerifyReport report;
  read_again(source, streamed_by, read, world, call, report);
  share_mismatches(report, world);
  on_every_rank(world, [&] { report.throw_if_bad(); });
  return report.reread.value();
}

}  // namespace

ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options) {
  require_agreement(state, world);
  auto const holdings = agree_on_holdings(state, world);
  auto const plan = agree_on_export(*state.source, {.holdings = holdings}, world, options);
  auto const exported = as_part_of(plan.target, state);
  std::optional<HeldTensors> held;
  on_every_rank(world, [&] { held.emplace(exported); });
  auto const expected = without_left_out(plan.target.taken, digest_all_held(exported, holdings, options.call, world));

  std::optional<Digests> originals;
  if (plan.originals) {
    originals = compare_with_originals(plan, *held, known_codes(state, holdings, world), options.call, world);
  }
  Export output(plan, std::move(originals), out_dir, world, options);
  auto written = output.write(*held);
  sum_over_ranks({&written}, world);
  on_every_rank(world, [&] {
    require_equal(plan.target.model, NamedTable{"held", expected.source}, NamedTable{"written", written.source});
    if (!plan.target.converted) require_fitting(*state.source, plan.target.taken, expected, written);
  });
  return output.publish(0);
}

ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options, VerifyLevel verify) {
  auto const& model = checkpoint.model;
  require_same_options(fmt::format("verify level {}", name(verify)), world);
  require_same_checkpoint(checkpoint, world);
  GatherOwners const owners{.holdings = {.mesh = make_mesh(world.size())}, .dense_everywhere = false};
  auto plan = agree_on_export(checkpoint, owners, world, options);
  if (!digests(verify)) plan.recorded.reset();
  if (digests(verify)) require_equal_copies(checkpoint, world, options.call);

  StreamedTensors streamed(checkpoint.storage, model);
  std::optional<Digests> originals;
  if (plan.originals && checkpoint.storage.form == Form::native) {
    originals = compare_with_originals(plan, streamed, checkpoint.digests, options.call, world);
  }
  Export output(plan, std::move(originals), out_dir, world, options);
  plan.target.converted ? write_converted(model, plan, streamed, output, world)
                        : write_as_read(checkpoint, plan, streamed, output, world);
  if (digests(verify) && checkpoint.digests) {
    auto read = streamed.read();
    auto const recorded = without_left_out(tensors_streamed(checkpoint, plan.target), *checkpoint.digests);
    sum_over_ranks({&read}, world);
    on_every_rank(world, [&] {
      require_equal(model, NamedDigests{checkpoint.digests_from, recorded}, NamedDigests{"read", read});
    });
  }
  std::optional<Reread> reread;
  if (verify == VerifyLevel::reread) {
    reread = reread_streamed(checkpoint, plan, streamed.read(), options.call, world);
  }
  auto const streamed_here = streamed_slices(checkpoint, plan, world.size(), world.rank());
  auto report = output.publish(stored_bytes(checkpoint.storage, model, streamed_here).read);
  report.reread = reread;
  return report;
}

}  // namespace rankslice
