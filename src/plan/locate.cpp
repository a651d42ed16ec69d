#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "core/block_scales.hpp"
#include "plan/plan.hpp"

namespace rankslice {

namespace {

/// Appends what is left of a slice when a part that lies inside it is taken out.
void append_rest(std::vector<Slice>& rest, Slice const& slice, Slice const& taken) {
  auto const append = [&](Slice const& left) {
    if (!left.empty()) rest.push_back(left);
  };
  append({.part = {slice.part.begin, taken.part.begin}, .rows = slice.rows});
  append({.part = taken.part, .rows = {slice.rows.begin, taken.rows.begin}});
  append({.part = taken.part, .rows = {taken.rows.end, slice.rows.end}});
  append({.part = {taken.part.end, slice.part.end}, .rows = slice.rows});
}

[[noreturn]] void fail_uncovered(Model const& model, Parameter const& parameter, Slice const& missing) {
  auto const& key = model.key_of(parameter);
  auto const rows =
      parameter.stacked_experts ? fmt::format(", rows [{}, {}),", missing.rows.begin, missing.rows.end) : std::string();
  throw PlanError(
      fmt::format("{}: {} [{}, {}){} are in none of the files", key, parameter.stacked_experts ? "experts" : "elements",
                  missing.part.begin, missing.part.end, rows),
      key);
}

}  // namespace

std::vector<LocatedSlice> locate(Storage const& storage, Model const& model, PlannedSlice const& wanted) {
  auto const& parameter = model.parameters[wanted.parameter];
  std::vector<LocatedSlice> located;
  auto const pieces = std::ranges::equal_range(storage.pieces, wanted.parameter, {}, &StoredPiece::parameter);
  if (storage.partial) {
    for (auto const& piece : pieces) {
      auto const common = intersection(piece.slice, wanted.slice);
      if (!common.empty()) located.push_back({&piece, common});
    }
    return located;
  }
  // Of split experts several pieces fill the columns of one slice; that they do was checked when they were mapped.
  auto const fills_columns = [&](StoredPiece const& piece) {
    return storage.form == Form::native || model.tensors[piece.tensor].columns.begin == 0;
  };
  std::vector<Slice> missing;
  if (!wanted.slice.empty()) missing.push_back(wanted.slice);
  for (auto const& piece : pieces) {
    if (!fills_columns(piece)) {
      auto const common = intersection(piece.slice, wanted.slice);
      if (!common.empty()) located.push_back({&piece, common});
      continue;
    }
    std::vector<Slice> still_missing;
    for (auto const& slice : missing) {
      auto const common = intersection(piece.slice, slice);
      if (common.empty()) {
        still_missing.push_back(slice);
        continue;
      }
      located.push_back({&piece, common});
      append_rest(still_missing, slice, common);
    }
    missing = std::move(still_missing);
  }
  if (!missing.empty()) fail_uncovered(model, parameter, missing.front());
  return located;
}

StoredBytes stored_bytes(Storage const& storage, Model const& model, std::vector<PlannedSlice> const& plan) {
  StoredBytes bytes;
  for (auto const& item : plan) {
    auto const& parameter = model.parameters[item.parameter];
    for (auto const& located : locate(storage, model, item)) {
      auto const columns =
          storage.form == Form::hf ? model.tensors[located.piece->tensor].columns.size() : parameter.columns();
      auto const row_bytes = columns * parameter.unit_bytes(storage.form);
      auto const scales = scale_range(model, *located.piece, located.slice).size();
      bytes.wanted += located.slice.size() * row_bytes + scales;
      bytes.read += parameter.read_for(located.slice, storage.form).size() * row_bytes + scales;
    }
  }
  return bytes;
}

std::vector<Range> read_ranges(Model const& model, Form storage_form, LocatedSlice const& located) {
  auto const& piece = *located.piece;
  auto const& parameter = model.parameters[piece.parameter];
  auto const read = parameter.read_for(located.slice, storage_form);
  if (read.empty()) return {};
  auto const swapped = storage_form == Form::hf && parameter.layout == Layout::swapped;
  auto const columns = swapped ? model.tensors[piece.tensor].columns.size() : parameter.columns();
  auto const unit = parameter.unit_bytes(storage_form);
  // Of an expert as it is stored: rows of so many bytes, of each of which `within` is read.
  auto const stored_rows = swapped ? columns : 1;
  auto const row_bytes = swapped ? parameter.row_count() * unit : piece.slice.rows.size() * columns * unit;
  auto const width = swapped ? unit : columns * unit;
  auto const first = swapped ? 0 : piece.slice.rows.begin;
  Range const within{(read.rows.begin - first) * width, (read.rows.end - first) * width};
  auto const first_row = (read.part.begin - piece.slice.part.begin) * stored_rows;
  auto const rows = read.part.size() * stored_rows;
  auto const begin = piece.extent.bytes.begin + first_row * row_bytes;
  if (within.size() == row_bytes) return {{begin, begin + rows * row_bytes}};
  std::vector<Range> ranges;
  for (std::uint64_t row = 0; row < rows; ++row) {
    ranges.push_back({begin + row * row_bytes + within.begin, begin + row * row_bytes + within.end});
  }
  return ranges;
}

}  // namespace rankslice
