#include "rankslice/gather.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "agreed_holdings.hpp"
#include "agreed_threads.hpp"
#include "checkpoint_parts.hpp"
#include "core/fingerprint.hpp"
#include "exported_state.hpp"
#include "gathered_tensors.hpp"
#include "native_source.hpp"
#include "state/consistency.hpp"
#include "verify/compare.hpp"
#include "verify/rank_tables.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// For every rank the first one of its host.
std::vector<int> first_ranks(Communicator const& world) {
  auto const firsts = first_ranks_of_hosts(world);
  std::vector<int> first_of;
  for (int rank = 0; rank < world.size(); ++rank) {
    auto const same_host = [&](int first) { return world.host(first) == world.host(rank); };
    first_of.push_back(*std::ranges::find_if(firsts, same_host));
  }
  return first_of;
}

GatherRoute make_route(GatherOptions const& options, Communicator const& world) {
  switch (options.receivers) {
    case Receivers::one_rank:
      break;
    case Receivers::first_ranks_of_hosts:
      return route_to_hosts(first_ranks(world));
    case Receivers::all_ranks:
      return route_to_all(world.size());
  }
  if (options.rank < 0 || options.rank >= world.size()) {
    throw UsageError(fmt::format("gathering to rank {} of {} ranks", options.rank, world.size()));
  }
  return route_to(options.rank, world.size());
}

struct Gathering {
  ExportTarget target;
  GatherPlan plan;
  GatherRoute route;
};

Gathering plan_gathering(StateDict const& state, Holdings const& holdings, Communicator const& world,
                         GatherOptions const& options) {
  Gathering gathering{
      .target = make_export_target(*state.source,
                                   {.keys = options.keys, .layout = options.layout, .gdn_dtype = options.gdn_dtype}),
      .plan = {},
      .route = make_route(options, world)};
  auto const& [model, files, taken, converted] = gathering.target;
  if (has_copies(gathering.target)) {
    throw UsageError("in the layout of its source a state of converted values can be exported, not gathered");
  }
  std::vector<PlannedSlice> wanted;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    auto const is_taken = [&](std::uint32_t tensor) { return gathering.target.taken[tensor]; };
    if (std::ranges::any_of(parameter.tensors, is_taken)) wanted.push_back({i, parameter.whole()});
  }
  GatherOwners owners{.holdings = holdings};
  if (options.receivers == Receivers::one_rank) owners.receiver = options.rank;
  gathering.plan = plan_gather(model, wanted, owners);
  return gathering;
}

/// The same on every rank. Collective.
Gathering agree_on_gathering(StateDict const& state, Holdings const& holdings, Communicator& world,
                             GatherOptions const& options) {
  Gathering gathering;
  on_every_rank(world, [&] { gathering = plan_gathering(state, holdings, world, options); });
  auto const asked = fmt::format("{} {} {}", fingerprint(gathering.target.files.hf),
                                 static_cast<int>(options.receivers), options.rank);
  require_same(xxh3_128(std::as_bytes(std::span(asked))),
               "would gather other tensors, or elsewhere, than rank 0; options must be the same on every rank", world);
  return gathering;
}

/// Every tensor that is taken as a file by itself.
Storage place_tensors(ExportTarget const& target) {
  TensorCatalog catalog;
  for (std::uint32_t i = 0; i < target.taken.size(); ++i) {
    auto const& tensor = target.model.tensors[i];
    Extent const whole{.file = i, .bytes = {0, byte_size(tensor.dtype, tensor.shape)}};
    if (target.taken[i]) catalog.tensors.push_back({tensor.key, tensor.dtype, tensor.shape, whole});
  }
  return {.form = Form::hf,
          .files = {},
          .pieces = hf_pieces(catalog, target.model),
          .partial = catalog.tensors.size() < target.taken.size()};
}

/// Turns native boxes into blocks of Hugging Face tensors.
class HandOut {
 public:
  HandOut(ExportTarget const& target, HfBlockStep const& use, BlockDone done)
      : target_(target),
        model_(target.model),
        use_(use),
        places_(place_tensors(target)),
        transfer_(model_, Form::hf, std::move(done)),
        handed_out_(model_) {}

  void give(std::vector<PlannedSlice> const& slices, NativeSource& source) {
    for (auto const& item : slices) {
      ParameterDigest digest(model_, model_.parameters[item.parameter]);
      DigestSink const sink{.digest = &digest, .sums = &handed_out_};
      source.for_each_box(item, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
        if (slice.empty()) return give_empty(model_.parameters[item.parameter]);
        for (auto const& [piece, part] : locate(places_, model_, {item.parameter, slice})) {
          auto const tensor = piece->tensor;
          transfer_.write(
              *piece, part, box,
              [&](std::span<std::byte const> bytes, std::uint64_t offset) { give(tensor, offset, bytes); }, sink);
        }
      });
    }
  }

  [[nodiscard]] Digests const& handed_out() const { return handed_out_; }
  [[nodiscard]] std::uint64_t tensors() const { return tensors_; }

 private:
  void give(std::uint32_t index, std::uint64_t offset, std::span<std::byte const> bytes) {
    auto const& tensor = model_.tensors[index];
    auto const end = offset + bytes.size();
    auto const last = end == byte_size(tensor.dtype, tensor.shape);
    if (last) ++tensors_;
    use_({.tensor = tensor, .bytes = {offset, end}, .data = bytes, .last = last});
  }

  void give_empty(Parameter const& parameter) {
    for (auto const tensor : parameter.tensors) {
      if (target_.taken[tensor]) give(tensor, 0, {});
    }
  }

  ExportTarget const& target_;
  Model const& model_;
  HfBlockStep const& use_;
  Storage places_;
  Transfer transfer_;
  Digests handed_out_;
  std::uint64_t tensors_ = 0;
};

/// What this rank moves: of those who receive the tensors, else what it sends.
std::uint64_t bytes_to_move(Gathering const& gathering, bool receives, int rank) {
  auto const& model = gathering.target.model;
  if (!receives) return plan_bytes(model, slices_sent_by(gathering.plan, rank), Form::native);
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (gathering.target.taken[i]) bytes += byte_size(model.tensors[i].dtype, model.tensors[i].shape);
  }
  return bytes;
}

}  // namespace

GatherReport gather(StateDict const& state, Communicator& world, GatherOptions const& options, HfBlockStep const& use) {
  require_agreement(state, world);
  auto const holdings = agree_on_holdings(state, world);
  auto const gathering = agree_on_gathering(state, holdings, world, options);
  auto const& target = gathering.target;
  auto const exported = as_part_of(target, state);
  std::optional<HeldTensors> held;
  on_every_rank(world, [&] { held.emplace(exported); });
  auto const expected =
      without_left_out(target.taken, digest_all_held(exported, holdings, with_threads(options.call, world), world));

  GatherPaths const paths(gathering.route, world);
  auto const done = watch(options.call, "gather", bytes_to_move(gathering, paths.receives(), world.rank()), &world);
  auto const used = [&](std::uint64_t bytes) {  // those who receive may wait for this one in their own communicator
    done(bytes);
    if (paths.receivers() != nullptr) paths.receivers()->progress();
  };
  auto const alive = watch({.stop = options.call.stop}, "gather", 0, &world);
  std::optional<HandOut> receiver;
  std::optional<GatheredTensors> gathered;
  on_every_rank(world, [&] {
    receiver.emplace(target, use, used);
    gathered.emplace(target.model, gathering.plan, paths, *held, paths.receives() ? alive : done);
  });
  gathered->gather(
      [&](std::vector<PlannedSlice> const& slices, NativeSource& source) { receiver->give(slices, source); });
  on_every_rank(world, [&] {
    if (!paths.receives()) return;
    auto const& found = receiver->handed_out();
    require_equal(target.model, NamedTable{"held", expected.source}, NamedTable{"handed out", found.source});
    if (!target.converted) require_fitting(*state.source, target.taken, expected, found);
  });
  auto const traffic = gather_traffic(target.model, gathering.plan, gathering.route);
  auto const& mine = traffic[static_cast<std::size_t>(world.rank())];
  return {.tensors = receiver->tensors(), .bytes_sent = mine.sent, .bytes_received = mine.received};
}

}  // namespace rankslice
