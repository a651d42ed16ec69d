#include "rankslice/store.hpp"

#include <algorithm>
#include <cstring>

#include "agreed_holdings.hpp"
#include "format/hdf5_store_writer.hpp"
#include "io/file.hpp"
#include "io/staged_output.hpp"
#include "native_source.hpp"
#include "plan/plan.hpp"
#include "shared_output.hpp"
#include "slice_writer.hpp"
#include "state/consistency.hpp"
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

/// Everything but tensor bytes, offsets and digest values, which are written at the end.
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

/// Make the metadata on rank 0; every rank learns where the tensors go. Collective.
Storage create_target(Checkpoint const& source, Digests const& digests, std::string const& path, Communicator& world) {
  std::vector<std::uint64_t> places(source.model.parameters.size() + 1);  // offsets, then the file's size
  on_every_rank(world, [&] {
    if (world.rank() != 0) return;
    auto const layout = create_store(path, describe(source, digests));
    std::ranges::copy(layout.offsets, places.begin());
    places.back() = layout.file_size;
  });
  auto const from_rank_0 = std::as_bytes(std::span(places));
  std::vector<std::byte> shared(from_rank_0.begin(), from_rank_0.end());
  broadcast_vector(world, shared, 0);
  std::memcpy(places.data(), shared.data(), shared.size());
  Storage target{.form = Form::native, .files = {{path, path, places.back()}}, .pieces = {}};
  for (std::uint32_t i = 0; i < source.model.parameters.size(); ++i) {
    auto const& parameter = source.model.parameters[i];
    auto const bytes = byte_size(parameter.dtype, parameter.shape);
    target.pieces.push_back({.parameter = i,
                             .tensor = 0,
                             .slice = parameter.whole(),
                             .extent = {.file = 0, .bytes = {places[i], places[i] + bytes}}});
  }
  return target;
}

/// Record the digests, seal the store, and see that it says what it should. On rank 0.
void complete(std::string const& path, Checkpoint const& source, Digests const& digests) {
  auto const of_source = recorded_source(source.model, digests);
  auto const of_stored = recorded_stored(source.model, digests);
  write_digests(path, of_source, of_stored);
  complete_store(path);
  auto const found = native_store().read(path);
  auto const same_file = [](HfFile const& a, HfFile const& b) {
    return a.name == b.name && a.size == b.size && a.header == b.header;
  };
  if (found.source == of_source && found.stored == of_stored && found.hf.index == source.hf.index &&
      found.hf.config == source.hf.config && std::ranges::equal(found.hf.files, source.hf.files, same_file)) {
    return;
  }
  throw VerifyError(path + ": headers, index, config.json or digests read back differently from what was written",
                    path);
}

}  // namespace

SaveReport save_store(StateDict const& state, std::string const& path, Communicator& world,
                      SaveOptions const& options) {
  require_agreement(state, world);
  auto const holdings = agree_on_holdings(state, world);
  auto const& source = *state.source;
  std::optional<HeldTensors> held;
  std::vector<PlannedSlice> plan;
  on_every_rank(world, [&] {
    held.emplace(state);
    plan = make_save_plan(source.model, holdings, world.rank());
  });
  auto expected = digest_all_held(state, holdings, options.call, world);
  add_codes(state, holdings, world, expected);
  SharedOutput output(path, StagedOutput::Kind::file, options.overwrite, world);
  auto const target = create_target(source, expected, output.path(), world);

  auto const done = watch(options.call, "store", 2 * plan_bytes(source.model, plan, Form::native), &world);
  Digests written;
  on_every_rank(world, [&] { written = write_slices(source.model, plan, *held, target, done); });
  on_every_rank(world, [&] { check_read_back(source.model, plan, target, written, done); });
  world.all_reduce(written.source.values(), Reduce::sum);
  world.all_reduce(written.stored.values(), Reduce::sum);
  on_every_rank(world, [&] {
    require_equal(source.model, NamedDigests{"held", expected}, NamedDigests{"written", written});
    if (world.rank() == 0) complete(output.path(), source, expected);
  });
  output.publish();
  return {.bytes_written = plan_bytes(source.model, plan, Form::native)};
}

}  // namespace rankslice
