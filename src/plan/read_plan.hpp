#pragma once

#include <cstddef>
#include <vector>

#include "plan/plan.hpp"

namespace rankslice {

/// What a piece of a storage holds of one of the slices of a plan.
struct PlannedPiece {
  std::size_t item = 0;  ///< Which of the slices.
  LocatedSlice located;
};

/// All of it, in the order of files and of the bytes in them, scales included, so that what lies together is read
/// together. Pure.
/// @throws PlanError as `locate`.
[[nodiscard]] std::vector<PlannedPiece> in_file_order(Storage const& storage, Model const& model,
                                                      std::vector<PlannedSlice> const& plan);

/// The bytes that are read for some pieces and their block scales, in the order in which they are read. Pure.
[[nodiscard]] std::vector<Extent> extents_read(Storage const& storage, Model const& model,
                                               std::vector<PlannedPiece> const& pieces);

}  // namespace rankslice
