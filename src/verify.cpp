#include "rankslice/verify.hpp"

#include <fmt/format.h>

#include <string_view>
#include <unordered_map>
#include <utility>

#include "agreed_holdings.hpp"
#include "agreed_threads.hpp"
#include "copies.hpp"
#include "hf_files.hpp"
#include "parallel_reading.hpp"
#include "plan/held.hpp"
#include "plan/plan.hpp"
#include "reread.hpp"
#include "state/consistency.hpp"
#include "state/local_tensor.hpp"
#include "verify/compare.hpp"
#include "verify/coverage.hpp"
#include "verify/rank_tables.hpp"
#include "verify/shared_mismatches.hpp"
#include "verify/traffic.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

void add(VerifyReport& report, std::vector<Mismatch> const& more) {
  report.mismatches.insert(report.mismatches.end(), more.begin(), more.end());
}

/// Name the rank that holds, or read, each expert that differs from a reference.
void name_owners(std::vector<Mismatch>& mismatches, Model const& model, Holdings const& holdings) {
  if (mismatches.empty()) return;
  std::unordered_map<std::string_view, std::uint32_t> parameters;
  for (auto const& tensor : model.tensors) parameters.emplace(tensor.key, tensor.parameter);
  for (auto& mismatch : mismatches) {
    if (mismatch.expert < 0 || mismatch.rank >= 0) continue;
    auto const index = parameters.at(mismatch.tensor);
    auto const expert = static_cast<std::uint64_t>(mismatch.expert);
    auto const holder = holder_of_expert(model.parameters[index], index, holdings, expert);
    if (!holder) continue;  // it may be any of those that share the expert
    mismatch.rank = *holder;
    mismatch.what = fmt::format("rank {}: {}", mismatch.rank, mismatch.what);
  }
}

/// Compare what all ranks together read with every reference there is: what `source` recorded itself, and
/// `options.against`. Rank 0 adds what differs. Collective.
void compare_with_references(Checkpoint const& source, Digests read, VerifyOptions const& options, Communicator& world,
                             Holdings const& holdings, VerifyReport& report) {
  auto const compare = [&](std::string_view name, Digests const& reference) {
    report.reference = name;
    if (world.rank() != 0) return;
    auto found = differences(source.model, NamedDigests{name, reference}, {"read", read}, -1);
    name_owners(found, source.model, holdings);
    add(report, found);
  };
  if (source.digests) {
    compare(source.digests_from, *source.digests);
    add_codes_of(source.model, *source.digests, read);
  }
  if (options.against == nullptr) return;
  auto const& against = *options.against;
  // Of a folder its bytes count, and not what its manifest says of them: that may be of another day.
  auto const recorded = against.digests && against.format != CheckpointFormat::huggingface;
  auto const reference = recorded ? *against.digests : digest(against, world, options.call);
  if (against.digests && !recorded && world.rank() == 0) {
    auto const name = fmt::format("{} of {}", against.digests_from, against.path);
    add(report, differences(against.model, NamedDigests{name, *against.digests}, {"read", reference}, -1));
  }
  auto const matched = in_order_of(source, against, reference, read);
  if (world.rank() == 0) add(report, matched.mismatches);
  report.without_codes = matched.without_codes;
  compare("against", matched.digests);
}

void require_read_digests(StateDict const& state) {
  if (state.read.source.tensors() > 0) return;
  throw PlanError("nothing was digested while loading; load with VerifyLevel::full");
}

/// What one rank read and what is recorded of it: only of experts, and of dense tensors, that it read whole.
struct Comparable {
  Digests recorded, read;
};

Comparable only_whole(StateDict const& state, Digests const& recorded) {
  auto const& model = state.source->model;
  Comparable digests{.recorded = recorded, .read = state.read};
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    auto const& experts = model.tensors[i].experts;
    auto const& parameter = model.parameters[model.tensors[i].parameter];
    auto const tensor = state.tensors.find(parameter.fqn);
    auto const held = tensor != state.tensors.end() ? tensor->second.slice() : Slice{};
    auto const entries = digests.recorded.source.of(i).size();
    for (std::size_t e = 0; e < entries; ++e) {
      auto const expert = experts.begin + e;
      auto const whole = parameter.stacked_experts ? held.part.begin <= expert && expert < held.part.end &&
                                                         held.rows.size() == parameter.row_count()
                                                   : tensor != state.tensors.end() && held == parameter.whole();
      if (whole) continue;
      for (auto* const of : {&digests.recorded, &digests.read}) of->source.of(i)[e] = of->stored.of(i)[e] = 0;
    }
  }
  return digests;
}

/// The same on every rank, and a reference only where it is compared with. Collective. @throws PlanError, UsageError
void require_sound(VerifyOptions const& options, Communicator& world) {
  auto const* const against = options.against;
  auto const of_against = against != nullptr
                              ? fmt::format(", against {} ({}), {}", against->path, checkpoint_fingerprint(*against),
                                            describe_recorded(*against))
                              : std::string();
  require_same_options(fmt::format("verify level {}{}", name(options.level), of_against), world);
  on_every_rank(world, [&] {
    if (against == nullptr || digests(options.level)) return;
    throw UsageError(fmt::format("{}: nothing is compared with it at verify level {}, but from full on", against->path,
                                 name(options.level)));
  });
}

VerifyOptions with_threads(VerifyOptions options, Communicator& world) {
  options.call = rankslice::with_threads(std::move(options.call), world);
  return options;
}

void verify_contents(StateDict const& state, Holdings const& holdings, Communicator& world,
                     VerifyOptions const& options, VerifyReport& report) {
  auto const& model = state.source->model;
  RankTables tables(state, holdings, world);
  Digests held;
  on_every_rank(world, [&] {
    require_read_digests(state);
    held = digest_held(state, options.call, &world);
  });
  auto read = state.read;
  tables.reduce(read.source, "read", report.mismatches);
  if (converts(model)) tables.reduce(read.stored, "read", report.mismatches);
  // What a rank holds by mistake may have been read by any.
  add(report, differences(model, NamedDigests{"read", state.read}, {"held", held}, world.rank(), &read));
  if (options.level == VerifyLevel::reread) {
    auto const read_by = [&](int rank) { return held_slices(model, holdings, rank); };
    read_again(*state.source, read_by, state.read, world, options.call, report);
  }
  compare_with_references(*state.source, read, options, world, holdings, report);
}

/// What one of several ranks reads when they read a checkpoint together.
std::vector<PlannedSlice> share_of(Checkpoint const& checkpoint, int ranks, int rank) {
  return make_save_plan(checkpoint.model, {.mesh = make_mesh(ranks)}, rank);
}

/// The digests of this rank's share. Collective.
Digests digest_share(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call) {
  Digests share;
  on_every_rank(world, [&] {
    auto const slices = share_of(checkpoint, world.size(), world.rank());
    auto const bytes = plan_bytes(checkpoint.model, slices, checkpoint.storage.form);
    share = digest_slices(checkpoint.model, slices, checkpoint.storage,
                          {.how = call.reading, .threads = call.threads, .done = watch(call, "verify", bytes, &world)});
  });
  return share;
}

void sum_over(Communicator& world, Digests& digests) {
  world.all_reduce(digests.source.values(), Reduce::sum);
  world.all_reduce(digests.stored.values(), Reduce::sum);
}

}  // namespace

VerifyReport verify(StateDict const& state, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  if (!digests(options.level)) return report;
  require_consistent(state);
  for (auto const& [fqn, tensor] : state.tensors) {
    ++report.tensors;
    if (!tensor.parameter.stacked_experts) continue;
    auto const held = tensor.slice();
    report.experts += held.part.size();
    if (held.rows.size() != tensor.parameter.row_count()) report.experts_in_part += held.part.size();
  }
  require_read_digests(state);
  auto const& model = state.source->model;
  auto const rank = state.mesh.rank(state.coordinate);
  auto const call = with_threads(options.call);
  auto const held = digest_held(state, call, nullptr);
  add(report, differences(model, NamedDigests{"read", state.read}, {"held", held}, rank));
  if (options.level == VerifyLevel::reread) {
    read_again(*state.source, slices_held(state), state.read, rank, call, report);
  }
  if (state.source->digests) {
    report.reference = state.source->digests_from;
    auto const comparable = only_whole(state, *state.source->digests);
    add(report,
        differences(model, NamedDigests{report.reference, comparable.recorded}, {"read", comparable.read}, rank));
  }
  return report;
}

VerifyReport verify(StateDict const& state, Communicator& world, VerifyOptions const& options) {
  VerifyReport report;
  report.level = options.level;
  require_sound(options, world);
  if (options.level == VerifyLevel::off) return report;
  on_every_rank(world, [&] { require_consistent(state, world); });
  for (auto const& [fqn, tensor] : state.tensors) {
    ++report.tensors;
    if (tensor.parameter.stacked_experts) report.experts += tensor.parameter.shape[0];
  }
  if (check_alike(state, world, report.mismatches)) {  // else the ranks would take different steps
    if (digests(options.level)) require_equal_copies(*state.source, world, options.call);
    auto const holdings = agree_on_holdings(state, world);
    check_coverage(state, holdings, report.mismatches);
    if (digests(options.level)) verify_contents(state, holdings, world, with_threads(options, world), report);
  }
  share_mismatches(report, world);
  return report;
}

Digests digest(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call) {
  auto read = digest_share(checkpoint, world, with_threads(call, world));
  sum_over(world, read);
  return read;
}

VerifyReport verify(Checkpoint const& checkpoint, Communicator& world, VerifyOptions const& given) {
  VerifyReport report;
  report.level = given.level;
  require_sound(given, world);
  if (given.level == VerifyLevel::off) return report;
  require_same_checkpoint(checkpoint, world);
  report.tensors = checkpoint.model.parameters.size();
  for (auto const& parameter : checkpoint.model.parameters) {
    if (parameter.stacked_experts) report.experts += parameter.part_count();
  }
  if (given.level == VerifyLevel::coverage) return report;  // opening it has proved that much
  auto const options = with_threads(given, world);
  require_equal_copies(checkpoint, world, options.call);
  auto read = digest_share(checkpoint, world, options.call);
  if (options.level == VerifyLevel::reread) {
    auto const read_by = [&](int rank) { return share_of(checkpoint, world.size(), rank); };
    read_again(checkpoint, read_by, read, world, options.call, report);
  }
  sum_over(world, read);
  report.read = std::move(read);
  on_every_rank(world, [&] {
    if (world.rank() == 0) check_side_files(checkpoint.hf, watch({.stop = options.call.stop}, "verify", 0, &world));
  });
  compare_with_references(checkpoint, report.read, options, world, {.mesh = make_mesh(world.size())}, report);
  share_mismatches(report, world);
  return report;
}

}  // namespace rankslice
