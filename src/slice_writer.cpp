#include "slice_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "rankslice/error.hpp"

#include "core/literals.hpp"

namespace rankslice {

namespace {

constexpr auto kWindowBytes = 16_MiB;
constexpr std::size_t kWindowsUnderWay = 4;  // as many as keep a disk busy while the next one is made

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

/// Call step(slice) for the parts of a slice that make up windows: its experts one by one, or some MiB of a dense
/// tensor.
template <typename Step>
void for_each_part(Parameter const& parameter, Slice const& slice, Step const& step) {
  auto const most = parameter.stacked_experts ? 1 : kWindowBytes / parameter.unit_bytes(Form::native);
  for (auto begin = slice.part.begin; begin < slice.part.end; begin += most) {
    step(Slice{.part = {begin, std::min(begin + most, slice.part.end)}, .rows = slice.rows});
  }
}

}  // namespace

SliceWriter::SliceWriter(Model const& model, Storage const& target, BlockDone done, PageCache cache)
    : model_(model),
      target_(target),
      cache_(cache),
      files_(target),
      reader_(target, model, {}, open_reader),
      transfer_(model, target.form, std::move(done)),
      written_(model),
      found_(model) {
  written_.without_codes = found_.without_codes = target.form == Form::native;
}

void SliceWriter::write(std::vector<PlannedSlice> const& plan, NativeSource& source) {
  for (auto const& item : plan) {
    parameters_.insert(item.parameter);
    ParameterDigest digest(model_, model_.parameters[item.parameter]);
    DigestSink const sink{.digest = &digest, .sums = &written_};
    source.for_each_box(item, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
      for (auto const& located : locate(target_, model_, {item.parameter, slice})) write_located(located, box, sink);
    });
  }
}

void SliceWriter::write_located(LocatedSlice const& located, NativeBox<std::byte const> const& box,
                                DigestSink const& sink) {
  auto const& piece = *located.piece;
  auto const& parameter = model_.parameters[piece.parameter];
  for_each_part(parameter, located.slice, [&](Slice const& part) {
    transfer_.write(piece, part, box, files_.at(piece.extent.file), sink);
    window_.slices.push_back({&piece, part});
    window_.bytes += parameter.bytes(part, target_.form);
    if (window_.bytes < kWindowBytes) return;
    close_window();
    if (under_way_.size() > kWindowsUnderWay) read_back_first();
  });
}

void SliceWriter::close_window() {
  window_.extents = files_.start_write_back();
  under_way_.push_back(std::exchange(window_, {}));
}

void SliceWriter::read_back_first() {
  auto const window = std::move(under_way_.front());
  under_way_.pop_front();
  files_.finish_write_back(window.extents);
  std::optional<ParameterDigest> digest;
  std::uint32_t digested = 0;
  for (auto const& [piece, slice] : window.slices) {
    if (!digest || digested != piece->parameter) digest.emplace(model_, model_.parameters[piece->parameter]);
    digested = piece->parameter;
    transfer_.digest(*piece, slice, reader_.files_of(*piece), {.digest = &*digest, .sums = &found_});
  }
  if (cache_ == PageCache::drop) files_.drop_cached(window.extents);
}

Digests const& SliceWriter::sync() {
  close_window();
  files_.sync();
  return written_;
}

void SliceWriter::read_back() {
  while (!under_way_.empty()) read_back_first();
  files_.close();
  require_equal();
}

void SliceWriter::require_equal() const {
  for (auto const parameter : parameters_) {
    for (auto const tensor : model_.parameters[parameter].tensors) {
      if (std::ranges::equal(found_.source.of(tensor), written_.source.of(tensor)) &&
          std::ranges::equal(found_.stored.of(tensor), written_.stored.of(tensor))) {
        continue;
      }
      fail_read_back(model_, target_, tensor, found_, written_);
    }
  }
}

}  // namespace rankslice
