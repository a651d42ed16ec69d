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

std::vector<PlannedPiece> in_file_order(Storage const& storage, Model const& model,
                                        std::vector<PlannedSlice> const& plan) {
  std::vector<PlannedPiece> pieces;
  for (std::size_t item = 0; item < plan.size(); ++item) {
    for (auto const& located : locate(storage, model, plan[item])) pieces.push_back({item, located});
  }
  std::ranges::stable_sort(pieces, {}, [](PlannedPiece const& piece) { return first_read(*piece.located.piece); });
  return pieces;
}

std::vector<Extent> extents_read(Storage const& storage, Model const& model, std::vector<PlannedPiece> const& pieces) {
  std::vector<Extent> extents;
  for (auto const& [item, located] : pieces) {
    auto const scales = scale_range(model, *located.piece, located.slice);
    if (!scales.empty()) extents.push_back({located.piece->scales->file, scales});
    for (auto const& range : read_ranges(model, storage.form, located)) {
      if (!range.empty()) extents.push_back({located.piece->extent.file, range});
    }
  }
  return extents;
}

}  // namespace rankslice
