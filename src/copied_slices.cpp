#include "copied_slices.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "rankslice/error.hpp"

#include "core/block_scales.hpp"
#include "core/literals.hpp"
#include "core/rows_before.hpp"
#include "exported_state.hpp"
#include "hf_target.hpp"
#include "read_batches.hpp"
#include "storage_reader.hpp"
#include "target_files.hpp"
#include "transform/tensor_digest.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 1_MiB;

/// Elements of a tensor that are contiguous in its file.
struct Run {
  std::uint32_t tensor = 0;
  Range elements;
  Extent extent;  // of the whole tensor
};

/// What a storage has of some slices, and of their block scales.
std::vector<Run> runs_of(Model const& model, Storage const& storage, std::vector<PlannedSlice> const& slices) {
  std::vector<Run> runs;
  for (auto const& item : slices) {
    for (auto const& [piece, slice] : locate(storage, model, item)) {
      auto const& tensor = model.tensors[piece->tensor];
      auto const per_part = element_count(tensor.shape) / piece->slice.part.size();
      auto const at = [&](std::uint64_t part) { return (part - piece->slice.part.begin) * per_part; };
      Range const elements{at(slice.part.begin), at(slice.part.end)};
      runs.push_back({.tensor = piece->tensor, .elements = elements, .extent = piece->extent});
      if (!piece->scales) continue;
      auto const scales = owned_scales(tensor.shape, elements);
      runs.push_back({.tensor = *tensor.scales, .elements = scales, .extent = *piece->scales});
    }
  }
  return runs;
}

/// Reads runs block by block and digests them where they stand.
class RunReader {
 public:
  RunReader(Model const& model, Storage const& storage, ReadOptions const& how, BlockDone const& done)
      : model_(model), storage_(storage), how_(how), done_(done), digests_(model) {}

  /// Call use(run, bytes, first_byte) for the blocks of some runs, `run` their number; `first_byte` counts from that of
  /// the tensor. @throws IoError also when a file changed under the reader
  template <typename Use>
  void read(std::vector<Run> const& runs, Use const& use) {
    for (auto const batch : in_batches(runs, [this](Run const& run) { return place_of(run).bytes.size(); })) {
      std::vector<Extent> extents;
      for (auto i = batch.begin; i < batch.end; ++i) extents.push_back(place_of(runs[i]));
      StorageReader reader(storage_, model_, {.extents = extents, .how = how_});
      for (auto i = batch.begin; i < batch.end; ++i) {
        read(runs[i], reader, [&](std::span<std::byte const> bytes, std::uint64_t at) { use(i, bytes, at); });
      }
      reader.finish();
    }
  }

  [[nodiscard]] Digests const& digests() const { return digests_; }

 private:
  [[nodiscard]] Extent place_of(Run const& run) const {
    auto const unit = element_bytes(model_.tensors[run.tensor].dtype);
    auto const begin = run.extent.bytes.begin;
    return {run.extent.file, {begin + run.elements.begin * unit, begin + run.elements.end * unit}};
  }

  template <typename Use>
  void read(Run const& run, StorageReader& reader, Use const& use) {
    auto const& tensor = model_.tensors[run.tensor];
    TensorDigest const digest(tensor.dtype, tensor.shape);
    auto const unit = element_bytes(tensor.dtype);
    for (auto at = run.elements.begin * unit; at < run.elements.end * unit; at += kBlockBytes) {
      block_.resize(std::min<std::uint64_t>(kBlockBytes, run.elements.end * unit - at));
      reader.file(run.extent.file).read(block_, run.extent.bytes.begin + at);
      digest.add(at / unit, block_, digests_.source.of(run.tensor));
      use(block_, at);
      done_(block_.size());
    }
  }

  Model const& model_;
  Storage const& storage_;
  ReadOptions how_;
  BlockDone const& done_;
  Digests digests_;
  std::vector<std::byte> block_;
};

/// Where a storage has each tensor of a model.
std::vector<Extent> places_of(Model const& model, Storage const& storage) {
  std::vector<Extent> places(model.tensors.size());
  for (auto const& piece : storage.pieces) {
    places[piece.tensor] = piece.extent;
    if (piece.scales) places[*model.tensors[piece.tensor].scales] = *piece.scales;
  }
  return places;
}

/// `source` has what was there before.
[[noreturn]] void fail_changed(Model const& model, Parameter const& parameter, Slice const& part, std::uint64_t byte,
                               Storage const& source) {
  auto const column = byte / parameter.unit_bytes(Form::native) % parameter.columns();
  auto const holds = [&](std::uint32_t index) {
    auto const& tensor = model.tensors[index];
    auto const has = [](Range range, std::uint64_t at) { return range.begin <= at && at < range.end; };
    return !parameter.stacked_experts || (has(tensor.experts, part.part.begin) && has(tensor.columns, column));
  };
  auto const tensor = *std::ranges::find_if(parameter.tensors, holds);
  auto const& key = model.tensors[tensor].key;
  auto const& file = source.files[places_of(model, source)[tensor].file].path;
  auto const expert = parameter.stacked_experts ? fmt::format("expert {} of ", part.part.begin) : std::string();
  refuse_changed(fmt::format("{}{} ({})", expert, parameter.fqn, key),
                 fmt::format(", or {} was: it cannot go back to {}", file, name(parameter.hf_dtype)), file, key);
}

}  // namespace

Storage storage_of(Model const& model, Checkpoint const& checkpoint) {
  auto const& storage = checkpoint.storage;
  TensorCatalog catalog{.files = storage.files, .tensors = {}};
  auto const places = places_of(checkpoint.model, storage);
  for (std::size_t i = 0; i < places.size(); ++i) {
    auto const& tensor = checkpoint.model.tensors[i];
    catalog.tensors.push_back({tensor.key, tensor.dtype, tensor.shape, places[i]});
  }
  return {.form = Form::hf, .files = storage.files, .pieces = hf_pieces(catalog, model)};
}

Digests require_unchanged(Model const& model, std::vector<PlannedSlice> const& slices, NativeSource& held,
                          Storage const& source, ReadOptions const& how, BlockDone const& done) {
  StreamedTensors original(source, model, how);
  original.expect(slices);
  held.expect(slices);
  for (auto const& item : slices) {
    auto const& parameter = model.parameters[item.parameter];
    held.for_each_box(item, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
      original.for_each_box({item.parameter, slice}, [&](Slice const& part, NativeBox<std::byte const> const& as_read) {
        auto const bytes = parameter.bytes(part, Form::native);
        auto const* const mine = box.data + bytes_before(parameter, box.slice, part);
        auto const* const theirs = as_read.data + bytes_before(parameter, as_read.slice, part);
        if (std::memcmp(mine, theirs, bytes) != 0) {
          auto const differs = std::mismatch(mine, mine + bytes, theirs).first - mine;
          fail_changed(model, parameter, part, static_cast<std::uint64_t>(differs), source);
        }
        done(bytes);
      });
    });
  }
  original.check_unchanged();
  return original.read();
}

Digests copy_slices(Model const& model, std::vector<PlannedSlice> const& slices, Storage const& source,
                    Storage const& target, ReadOptions const& how, BlockDone const& done) {
  TargetFiles files(target);
  auto const to = runs_of(model, target, slices);
  auto from = to;
  auto const places = places_of(model, source);
  for (auto& run : from) run.extent = places[run.tensor];
  RunReader reader(model, source, how, done);
  reader.read(from, [&](std::size_t i, std::span<std::byte const> bytes, std::uint64_t at) {
    files.at(to[i].extent.file).write(bytes, to[i].extent.bytes.begin + at);
  });
  files.finish();
  return reader.digests();
}

Digests digest_copies(Model const& model, std::vector<PlannedSlice> const& slices, Storage const& target,
                      BlockDone const& done) {
  RunReader reader(model, target, {.backend = ReadBackend::pread}, done);  // as what was computed is read back
  reader.read(runs_of(model, target, slices), [](auto, auto, auto) {});
  return reader.digests();
}

void check_copies(Model const& model, std::vector<PlannedSlice> const& slices, Storage const& target,
                  Digests const& copied, BlockDone const& done) {
  auto const found = digest_copies(model, slices, target, done);
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (std::ranges::equal(found.source.of(i), copied.source.of(i))) continue;
    auto const& key = model.tensors[i].key;
    auto const& file = target.files[places_of(model, target)[i].file].name;
    throw VerifyError(
        fmt::format("{}: {} reads back differently from what was copied: digest {:016x}, expected {:016x}", file, key,
                    found.source.sum(i), copied.source.sum(i)),
        file, key);
  }
}

}  // namespace rankslice
