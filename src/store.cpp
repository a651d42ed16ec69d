#include "rankslice/store.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>

#include "agreed_holdings.hpp"
#include "agreed_threads.hpp"
#include "format/hdf5_store_writer.hpp"
#include "native_source.hpp"
#include "parallel_reading.hpp"
#include "plan/segments.hpp"
#include "recorded_store.hpp"
#include "resume_key.hpp"
#include "shared_output.hpp"
#include "slice_writer.hpp"
#include "state/consistency.hpp"
#include "unit_sums.hpp"
#include "verify/compare.hpp"
#include "verify/rank_tables.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// Digests as a store records them: [sum, d(0), d(1), …], or [sum] for tensors of rank < 3.
template <typename Wanted>
std::vector<StoreContents::RecordedDigest> recorded(Model const& model, DigestTable const& table,
                                                    Wanted const& wanted) {
  std::vector<StoreContents::RecordedDigest> digests;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    auto const& tensor = model.tensors[i];
    if (!wanted(tensor, model.parameters[tensor.parameter])) continue;
    StoreContents::RecordedDigest digest{.hf_key = tensor.key, .values = {table.sum(i)}};
    if (tensor.shape.size() >= 3) {
      auto const entries = table.of(i);
      digest.values.insert(digest.values.end(), entries.begin(), entries.end());
    }
    digests.push_back(std::move(digest));
  }
  std::ranges::sort(digests, {}, &StoreContents::RecordedDigest::hf_key);
  return digests;
}

/// Of the checkpoint's own values. Those that cannot be computed back from what is held may not be known.
std::vector<StoreContents::RecordedDigest> recorded_source(Model const& model, Digests const& digests) {
  return recorded(model, digests.source, [&](HfTensor const&, Parameter const& parameter) {
    return parameter.invertible() || !digests.without_codes;
  });
}

/// Of converted values.
std::vector<StoreContents::RecordedDigest> recorded_stored(Model const& model, Digests const& digests) {
  return recorded(model, digests.stored, [](HfTensor const& tensor, Parameter const& parameter) {
    return parameter.converted() && !tensor.is_scales;
  });
}

/// Completes the digests of what is held by those of the codes that it was computed from. Collective.
void add_codes(StateDict const& state, Holdings const& holdings, Communicator& world, Digests& held) {
  auto const& model = state.source->model;
  if (std::ranges::all_of(model.parameters, &Parameter::invertible)) return;
  if (auto const codes = known_codes(state, holdings, world)) add_codes_of(model, *codes, held);
}

/// Everything but tensor bytes and offsets.
StoreContents describe(Checkpoint const& source, Digests const& digests) {
  StoreContents contents;
  contents.family = source.family;
  contents.hf = source.hf;
  for (auto const& parameter : source.model.parameters) {
    contents.tensors.push_back({parameter.fqn, parameter.dtype, parameter.shape, 0});
  }
  contents.source = recorded_source(source.model, digests);
  contents.stored = recorded_stored(source.model, digests);
  return contents;
}

struct StoreTarget {
  Storage storage;
  std::vector<Segment> segments;
  bool is_new = true;  ///< Nothing of it has been written yet.
};

/// Of what an earlier run left the metadata if they are these, else new ones.
StoreLayout find_or_create(SharedOutput const& output, StoreContents const& contents, bool& is_new) {
  std::error_code error;  // what cannot be looked at cannot be created either
  auto const is_there = output.taken_over() && std::filesystem::exists(output.path(), error);
  if (is_there) {
    if (auto const layout = find_store(output.path(), contents)) {
      is_new = false;
      return *layout;
    }
    std::filesystem::remove(output.path(), error);
  }
  return create_store(output.path(), contents);
}

/// `places`: of each parameter the offset, then the size of the file.
Storage storage_at(std::vector<std::uint64_t> const& places, Model const& model, std::string const& path) {
  auto const& parameters = model.parameters;
  Storage storage{.form = Form::native, .files = {{path, path, places[parameters.size()]}}, .pieces = {}};
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    auto const bytes = byte_size(parameters[i].dtype, parameters[i].shape);
    storage.pieces.push_back({.parameter = i,
                              .tensor = 0,
                              .slice = parameters[i].whole(),
                              .extent = {.file = 0, .bytes = {places[i], places[i] + bytes}}});
  }
  return storage;
}

/// The metadata on rank 0; every rank learns where the tensors go. Collective.
StoreTarget make_target(Checkpoint const& source, Digests const& digests, SharedOutput const& output,
                        Communicator& world, Recording const& recording) {
  auto const& parameters = source.model.parameters;
  std::vector<std::uint64_t> places;  // offsets, then the file's size, and whether it is new
  std::vector<std::byte> shared;
  on_every_rank(world, [&] {
    places.resize(parameters.size() + 2);
    shared.resize(places.size() * sizeof(std::uint64_t));
    if (world.rank() != 0) return;
    bool is_new = true;
    auto const layout = find_or_create(output, describe(source, digests), is_new);
    std::ranges::copy(layout.offsets, places.begin());
    places[parameters.size()] = layout.file_size;
    places.back() = is_new ? 1 : 0;
    std::memcpy(shared.data(), places.data(), shared.size());
  });
  broadcast_vector(world, shared, 0);
  StoreTarget target;
  on_every_rank(world, [&] {
    std::memcpy(places.data(), shared.data(), shared.size());
    target.storage = storage_at(places, source.model, output.path());
    target.segments = divide_into_segments(source.model, target.storage, recording.store_bytes);
    target.is_new = places.back() != 0;
  });
  return target;
}

/// Seal the store, and see that it says what it should. On rank 0.
void complete(std::string const& path, Checkpoint const& source, Digests const& digests) {
  complete_store(path);
  auto const found = native_store().read(path);
  auto const same_file = [](HfFile const& a, HfFile const& b) {
    return a.name == b.name && a.size == b.size && a.header == b.header;
  };
  if (found.source == recorded_source(source.model, digests) &&
      found.stored == recorded_stored(source.model, digests) && found.hf.index == source.hf.index &&
      found.hf.config == source.hf.config && std::ranges::equal(found.hf.files, source.hf.files, same_file)) {
    return;
  }
  throw VerifyError(path + ": headers, index, config.json or digests read back differently from what was written",
                    path);
}

/// What a state is stored from, and what all ranks hold of it.
struct StoreSubject {
  StateDict const& state;
  Holdings const& holdings;
  Digests const& expected;
};

/// Writes what is held into a store whose metadata stand there.
class StoreWriter final : public UnitWriter {
 public:
  /// All of them outlive the result.
  StoreWriter(StoreSubject const& subject, NativeSource& held, Storage const& target, Communicator& world,
              CallOptions const& call)
      : subject_(subject),
        model_(subject.state.source->model),
        held_(held),
        target_(target),
        world_(world),
        call_(call) {}

  [[nodiscard]] std::vector<Model const*> models() const override { return {&model_}; }
  [[nodiscard]] Tables none() const override {
    Digests written(model_);
    written.without_codes = true;
    return {written};
  }
  [[nodiscard]] std::size_t first_written() const override { return 0; }
  void expect(std::vector<PlannedSlice> const& to_read_back, std::vector<PlannedSlice> const& to_write) override {
    auto const bytes = [&](std::vector<PlannedSlice> const& units) {
      return plan_bytes(model_, plan_of(units), Form::native);
    };
    done_ = watch(call_, "store", bytes(to_read_back) + 2 * bytes(to_write), &world_);
  }
  [[nodiscard]] Tables write(std::vector<PlannedSlice> const& units) override {
    std::vector<PlannedSlice> plan;
    Tables written;
    on_every_rank(world_, [&] {
      plan = plan_of(units);
      written.push_back(write_slices(model_, plan, held_, target_, done_));
    });
    on_every_rank(world_, [&] { check_read_back(model_, plan, target_, written.front(), reading()); });
    return written;
  }
  [[nodiscard]] Tables read_back(std::vector<PlannedSlice> const& units) override {
    Tables found;
    on_every_rank(world_, [&] { found.push_back(digest_slices(model_, plan_of(units), target_, reading())); });
    return found;
  }
  [[nodiscard]] int writers() const override { return world_.size(); }
  [[nodiscard]] bool compares_sums() const override { return true; }
  void require_equal(Tables const& tables, std::vector<PlannedSlice> const& units, Whose whose) const override {
    if (whose == Whose::this_rank) return;
    auto const expected = of_units(model_, subject_.expected, units);
    rankslice::require_equal(model_, NamedDigests{"held", expected}, NamedDigests{"written", tables.front()});
  }

  [[nodiscard]] std::vector<PlannedSlice> plan_of(std::vector<PlannedSlice> const& units) const {
    return make_save_plan(model_, subject_.holdings, world_.rank(), units);
  }

 private:
  [[nodiscard]] PieceReading reading() const { return reading_back(call_, done_); }

  StoreSubject const& subject_;
  Model const& model_;
  NativeSource& held_;
  Storage const& target_;
  Communicator& world_;
  CallOptions const& call_;
  BlockDone done_;
};

/// Collective.
SaveReport fill_store(StoreSubject const& subject, NativeSource& held, SharedOutput& output, Communicator& world,
                      SaveOptions const& options, Recording const& recording) {
  auto const& source = *subject.state.source;
  auto target = make_target(source, subject.expected, output, world, recording);
  StoreWriter writer(subject, held, target.storage, world, options.call);
  StagedWriting stages(output, std::move(target.segments), writer, world,
                       options.resume ? std::optional(recording) : std::nullopt);
  stages.run({target.is_new}, options.call);
  SaveReport report;
  on_every_rank(world, [&] {
    require_equal(source.model, NamedDigests{"held", subject.expected}, NamedDigests{"written", stages.sums().front()});
    if (world.rank() == 0) complete(output.path(), source, subject.expected);
    report.resumed = stages.resumed();
    for (auto const& units : stages.stages()) {
      report.bytes_written += plan_bytes(source.model, writer.plan_of(units), Form::native);
    }
  });
  output.publish();
  return report;
}

}  // namespace

SaveReport save_recorded_store(StateDict const& state, std::string const& path, Communicator& world,
                               SaveOptions const& given, Recording const& recording) {
  require_agreement(state, world);
  auto options = given;
  options.call = with_threads(given.call, world);
  require_same_options(options.resume ? "resume" : "no resume", world);
  auto const holdings = agree_on_holdings(state, world);
  std::optional<HeldTensors> held;
  on_every_rank(world, [&] { held.emplace(state); });
  auto expected = digest_all_held(state, holdings, options.call, world);
  add_codes(state, holdings, world, expected);
  auto const key = options.resume ? resume_key(expected, *state.source) : std::string();
  SharedOutput output(path, StagedOutput::Kind::file, options.overwrite, world, key, options.call.notice);
  SaveReport report;
  output.fill([&] { report = fill_store({state, holdings, expected}, *held, output, world, options, recording); });
  return report;
}

SaveReport save_store(StateDict const& state, std::string const& path, Communicator& world,
                      SaveOptions const& options) {
  return save_recorded_store(state, path, world, options, {});
}

}  // namespace rankslice
