#include "slice_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace rankslice {

namespace {

[[noreturn]] void fail_read_back(Model const& model, Storage const& target, std::uint32_t tensor, Digests const& found,
                                 Digests const& written) {
  auto const& parameter = model.tensors[tensor].parameter;
  auto const same_tensor = [&](StoredPiece const& piece) {
    return piece.parameter == parameter && (target.form == Form::native || piece.tensor == tensor);
  };
  auto const& file = target.files[std::ranges::find_if(target.pieces, same_tensor)->extent.file];
  auto const& key = model.tensors[tensor].key;
  throw VerifyError(fmt::format("{}: {} reads back differently from what was written: digest {:016x}, expected {:016x}",
                                file.name, key, found.source.sum(tensor), written.source.sum(tensor)),
                    file.name, key);
}

}  // namespace

SliceWriter::SliceWriter(Model const& model, Storage const& target, BlockDone done)
    : model_(model), target_(target), files_(target), transfer_(model, target.form, std::move(done)), written_(model) {
  written_.without_codes = target.form == Form::native;
}

void SliceWriter::write(std::vector<PlannedSlice> const& plan, NativeSource& source) {
  for (auto const& item : plan) {
    ParameterDigest digest(model_, model_.parameters[item.parameter]);
    DigestSink const sink{.digest = &digest, .sums = &written_};
    source.for_each_box(item, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
      for (auto const& located : locate(target_, model_, {item.parameter, slice})) {
        transfer_.write(*located.piece, located.slice, box, files_.at(located.piece->extent.file), sink);
      }
    });
  }
}

Digests SliceWriter::finish() {
  files_.finish();
  return std::move(written_);
}

Digests write_slices(Model const& model, std::vector<PlannedSlice> const& plan, NativeSource& source,
                     Storage const& target, BlockDone const& done) {
  SliceWriter writer(model, target, done);
  writer.write(plan, source);
  return writer.finish();
}

void check_read_back(Model const& model, std::vector<PlannedSlice> const& plan, Storage const& target,
                     Digests const& written, PieceReading const& reading) {
  auto const found = digest_slices(model, plan, target, reading);
  for (auto const& item : plan) {
    for (auto const tensor : model.parameters[item.parameter].tensors) {
      if (std::ranges::equal(found.source.of(tensor), written.source.of(tensor)) &&
          std::ranges::equal(found.stored.of(tensor), written.stored.of(tensor))) {
        continue;
      }
      fail_read_back(model, target, tensor, found, written);
    }
  }
}

}  // namespace rankslice
