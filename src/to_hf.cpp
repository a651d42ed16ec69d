#include "rankslice/to_hf.hpp"

#include <fmt/format.h>

#include <optional>

#include "agreed_export.hpp"
#include "agreed_holdings.hpp"
#include "agreed_threads.hpp"
#include "copied_slices.hpp"
#include "copies.hpp"
#include "exported_state.hpp"
#include "exported_values.hpp"
#include "hf_export.hpp"
#include "native_source.hpp"
#include "recorded_export.hpp"
#include "reread.hpp"
#include "resume_key.hpp"
#include "state/consistency.hpp"
#include "unit_sums.hpp"
#include "verify/compare.hpp"
#include "verify/rank_tables.hpp"
#include "verify/shared_mismatches.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// What cannot be computed back is still what the originals give, and these are what was `loaded`, if that is known:
/// other codes and scales can give the same values. Returns the digests of the originals. Collective.
Digests compare_with_originals(ExportPlan const& plan, NativeSource& held, std::optional<Digests> const& loaded,
                               CallOptions const& call, Communicator& world) {
  Digests originals;
  auto const& model = plan.target.model;
  on_every_rank(world, [&] {
    auto const slices = compared_slices(plan, world.rank());
    auto const done = watch(call, "verify", plan_bytes(model, slices, Form::native), &world);
    originals = require_unchanged(model, slices, held, *plan.originals, call.reading, done);
  });
  world.all_reduce(originals.source.values(), Reduce::sum);
  if (!loaded || loaded->without_codes) return originals;
  on_every_rank(world, [&] {
    require_equal(model, NamedTable{"loaded", of_copies(plan.target, *loaded).source},
                  NamedTable{plan.copied_from, of_copies(plan.target, originals).source});
  });
  return originals;
}

/// A checkpoint in which the values of another one, or of itself, are read to write them.
struct Source {
  Checkpoint const& checkpoint;
  ExportPlan const& plan;
  Communicator& world;
  CallOptions const& call;

  /// Whether what is copied is compared with what the checkpoint has, which is then streamed too.
  [[nodiscard]] bool compares() const { return plan.originals && checkpoint.storage.form == Form::native; }
  /// What a rank streams in this run to write its part, or to send it to who writes.
  [[nodiscard]] std::vector<PlannedSlice> streamed_by(HfExport const& output, int rank) const {
    auto streamed = output.taken_by(rank);
    if (!compares()) return streamed;
    auto const compared = compared_slices(plan, rank);
    streamed.insert(streamed.end(), compared.begin(), compared.end());
    return streamed;
  }
};

/// Which tensors of a checkpoint are streamed in full: of one in the form of its files not those that are copied.
std::vector<bool> tensors_streamed(Source const& source) {
  auto const& target = source.plan.target;
  auto streamed = tensors_to_read(target, source.checkpoint.model);
  if (source.checkpoint.storage.form == Form::native || !has_copies(target)) return streamed;
  for (std::size_t i = 0; i < streamed.size(); ++i) streamed[i] = streamed[i] && !is_copied(target, i);
  return streamed;
}

/// What all ranks streamed, those of an earlier run among them, is what is recorded. Collective. @throws VerifyError
void require_recorded(Source const& source, Digests const& streamed, HfExport const& output) {
  auto const& [checkpoint, plan, world, call] = source;
  Digests read;
  on_every_rank(world, [&] { read = streamed; });
  world.all_reduce(read.source.values(), Reduce::sum);
  world.all_reduce(read.stored.values(), Reduce::sum);
  on_every_rank(world, [&] {
    auto const recorded = without_left_out(tensors_streamed(source), *checkpoint.digests);
    add_digests(output.read_before(), read);
    rankslice::require_equal(checkpoint.model, NamedDigests{checkpoint.digests_from, recorded},
                             NamedDigests{"read", read});
  });
}

/// What was streamed is the same when another rank reads it, or, in an earlier run, this one. Collective. @throws
/// VerifyError
Reread reread_streamed(Source const& source, Digests const& read, HfExport const& output) {
  auto const& [checkpoint, plan, world, call] = source;
  VerifyReport report;
  read_again(
      checkpoint, [&](int rank) { return source.streamed_by(output, rank); }, read, world, call, report);
  if (output.took_over()) {
    auto const before = [&](int rank) { return output.taken_before(rank); };
    read_again_after(checkpoint, before, output.read_before(), world, call, report);
  }
  share_mismatches(report, world);
  on_every_rank(world, [&] { report.throw_if_bad(); });
  return report.reread.value();
}

}  // namespace

ExportReport export_state(StateDict const& state, std::string const& out_dir, Communicator& world,
                          ExportOptions const& options, Recording const& recording) {
  require_agreement(state, world);
  auto const holdings = agree_on_holdings(state, world);
  auto const plan = agree_on_export(*state.source, {.holdings = holdings}, world, options);
  auto const& target = plan.target;
  auto const exported = as_part_of(target, state);
  std::optional<HeldTensors> held;
  on_every_rank(world, [&] { held.emplace(exported); });
  auto const expected =
      without_left_out(target.taken, digest_all_held(exported, holdings, with_threads(options.call, world), world));

  auto const values = exported_state(*held, expected, *state.source, target);
  ExportSubject subject{.values = *values};
  if (plan.originals) {
    subject.compared = compare_with_originals(plan, *held, known_codes(state, holdings, world), options.call, world);
  }
  if (options.resume) subject.key = resume_key(expected, target, plan.originals);
  HfExport output(plan, std::move(subject), out_dir, world, options, recording);
  ExportReport report;
  output.fill([&] {
    output.write();
    on_every_rank(world, [&] {
      rankslice::require_equal(target.model, NamedTable{"held", expected.source},
                               NamedTable{"written", output.written().source});
    });
    report = output.publish(0);
  });
  return report;
}

ExportReport export_checkpoint(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                               ExportOptions const& options, VerifyLevel verify, Recording const& recording) {
  require_same_options(fmt::format("verify level {}", name(verify)), world);
  require_same_checkpoint(checkpoint, world);
  GatherOwners const owners{.holdings = {.mesh = make_mesh(world.size())}, .dense_everywhere = false};
  auto plan = agree_on_export(checkpoint, owners, world, options);
  if (!digests(verify)) plan.recorded.reset();
  if (digests(verify)) require_equal_copies(checkpoint, world, options.call);

  Source const source{checkpoint, plan, world, options.call};
  auto const from_file_to_file = !plan.target.converted && !plan.originals && !plan.gather;
  StreamedTensors streamed(checkpoint.storage, checkpoint.model, options.call.reading, from_file_to_file);
  auto const values = exported_checkpoint(streamed, checkpoint, plan.target);
  ExportSubject subject{.values = *values};
  if (source.compares()) {
    subject.compared = compare_with_originals(plan, streamed, checkpoint.digests, options.call, world);
  }
  if (options.resume) subject.key = resume_key(checkpoint, plan.target, plan.originals);
  HfExport output(plan, std::move(subject), out_dir, world, options, recording);
  ExportReport report;
  output.fill([&] {
    output.write();
    if (digests(verify) && checkpoint.digests) require_recorded(source, streamed.read(), output);
    std::optional<Reread> reread;
    if (verify == VerifyLevel::reread) reread = reread_streamed(source, streamed.read(), output);
    std::uint64_t bytes_streamed = 0;
    on_every_rank(world, [&] {
      auto const streamed_here = source.streamed_by(output, world.rank());
      bytes_streamed = stored_bytes(checkpoint.storage, checkpoint.model, streamed_here).read;
    });
    report = output.publish(bytes_streamed);
    report.reread = reread;
  });
  return report;
}

ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options) {
  return export_state(state, out_dir, world, options, {});
}

ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options, VerifyLevel verify) {
  return export_checkpoint(checkpoint, out_dir, world, options, verify, {});
}

}  // namespace rankslice
