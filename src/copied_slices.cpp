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

/// Call step(run) for what a storage has of a slice, and for its block scales.
template <typename Step>
void for_each_run(Model const& model, Storage const& storage, PlannedSlice const& item, Step const& step) {
  for (auto const& [piece, slice] : locate(storage, model, item)) {
    auto const& tensor = model.tensors[piece->tensor];
    auto const per_part = element_count(tensor.shape) / piece->slice.part.size();
    auto const at = [&](std::uint64_t part) { return (part - piece->slice.part.begin) * per_part; };
    Range const elements{at(slice.part.begin), at(slice.part.end)};
    step(Run{.tensor = piece->tensor, .elements = elements, .extent = piece->extent});
    if (!piece->scales) continue;
    step(Run{.tensor = *tensor.scales, .elements = owned_scales(tensor.shape, elements), .extent = *piece->scales});
  }
}

/// Reads runs block by block and digests them where they stand.
class RunReader {
 public:
  RunReader(Model const& model, Storage const& storage, BlockDone const& done)
      : model_(model), reader_(storage, model), done_(done), digests_(model) {}

  /// Call use(bytes, first_byte) for the blocks of a run; `first_byte` counts from that of the tensor.
  template <typename Use>
  void read(Run const& run, Use const& use) {
    auto const& tensor = model_.tensors[run.tensor];
    TensorDigest const digest(tensor.dtype, tensor.shape);
    auto const unit = element_bytes(tensor.dtype);
    for (auto at = run.elements.begin * unit; at < run.elements.end * unit; at += kBlockBytes) {
      block_.resize(std::min<std::uint64_t>(kBlockBytes, run.elements.end * unit - at));
      reader_.file(run.extent.file).read(block_, run.extent.bytes.begin + at);
      digest.add(at / unit, block_, digests_.source.of(run.tensor));
      use(block_, at);
      done_(block_.size());
    }
  }

  /// @throws IoError when a file changed under the reader.
  [[nodiscard]] Digests finish() {
    reader_.check_unchanged();
    return std::move(digests_);
  }

 private:
  Model const& model_;
  StorageReader reader_;
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
                          Storage const& source, BlockDone const& done) {
  StreamedTensors original(source, model);
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
                    Storage const& target, BlockDone const& done) {
  RunReader reader(model, source, done);
  TargetFiles files(target);
  auto const from = places_of(model, source);
  for (auto const& item : slices) {
    for_each_run(model, target, item, [&](Run const& to) {
      reader.read({to.tensor, to.elements, from[to.tensor]}, [&](std::span<std::byte const> bytes, std::uint64_t at) {
        files.at(to.extent.file).write(bytes, to.extent.bytes.begin + at);
      });
    });
  }
  files.finish();
  return reader.finish();
}

Digests digest_copies(Model const& model, std::vector<PlannedSlice> const& slices, Storage const& target,
                      BlockDone const& done) {
  RunReader reader(model, target, done);
  for (auto const& item : slices) {
    for_each_run(model, target, item, [&](Run const& run) { reader.read(run, [](auto, auto) {}); });
  }
  return reader.finish();
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
