#include "slice_writer.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "storage_reader.hpp"
#include "target_files.hpp"

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

Digests write_slices(Model const& model, std::vector<PlannedSlice> const& plan, NativeSource& source,
                     Storage const& target, BlockDone const& done) {
  Digests written(model);
  written.without_codes = target.form == Form::native;
  TargetFiles files(target);
  Transfer transfer(model, target.form, done);
  for (auto const& item : plan) {
    ParameterDigest digest(model, model.parameters[item.parameter]);
    DigestSink const sink{.digest = &digest, .sums = &written};
    source.for_each_box(item, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
      for (auto const& located : locate(target, model, {item.parameter, slice})) {
        transfer.write(*located.piece, located.slice, box, files.at(located.piece->extent.file), sink);
      }
    });
  }
  files.finish();
  return written;
}

void check_read_back(Model const& model, std::vector<PlannedSlice> const& plan, Storage const& target,
                     Digests const& written, BlockDone const& done) {
  auto const found = digest_slices(model, plan, target, done);
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
