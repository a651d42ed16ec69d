#include "plan/read_plan.hpp"

#include <algorithm>

#include "core/block_scales.hpp"

namespace rankslice {

namespace {

/// Where reading a piece begins: at its scales, where they stand before it in the same file. Files that safetensors
/// wrote are sorted by the size of elements: all scales come first, then all weights, both by name. So both are read as
/// they lie.
Extent first_read(StoredPiece const& piece) {
  auto const scales_first = piece.scales && piece.scales->file == piece.extent.file;
  return scales_first ? std::min(*piece.scales, piece.extent) : piece.extent;
}

}  // namespace

std::vector<Range> merge(std::vector<Range> ranges) {
  std::ranges::sort(ranges);
  std::vector<Range> runs;
  for (auto const& range : ranges) {
    if (runs.empty() || range.begin > runs.back().end) {
      runs.push_back(range);
    } else {
      runs.back().end = std::max(runs.back().end, range.end);
    }
  }
  return runs;
}

std::vector<PlannedPiece> in_file_order(Storage const& storage, Model const& model,
                                        std::vector<PlannedSlice> const& plan) {
  std::vector<PlannedPiece> pieces;
  for (std::size_t item = 0; item < plan.size(); ++item) {
    for (auto const& located : locate(storage, model, plan[item])) pieces.push_back({item, located});
  }
  std::ranges::stable_sort(pieces, {}, [](PlannedPiece const& piece) { return first_read(*piece.located.piece); });
  return pieces;
}

std::vector<std::vector<Range>> merged_runs(Storage const& storage, Model const& model,
                                            std::vector<PlannedPiece> const& pieces) {
  std::vector<std::vector<Range>> by_file(storage.files.size());
  for (auto const& [item, located] : pieces) {
    auto& ranges = by_file[located.piece->extent.file];
    for (auto const& range : read_ranges(model, storage.form, located)) {
      if (!range.empty()) ranges.push_back(range);
    }
    auto const scales = scale_range(model, *located.piece, located.slice);
    if (!scales.empty()) by_file[located.piece->scales->file].push_back(scales);
  }
  for (auto& ranges : by_file) ranges = merge(std::move(ranges));
  return by_file;
}

}  // namespace rankslice
