#pragma once

#include <cstddef>
#include <vector>

#include "plan/read_plan.hpp"

namespace rankslice {

/// Pieces as several threads read them: in the same order, one thread after the other, each about the same number of
/// bytes. Experts stay whole, and so do dense tensors with block scales, which are all read with any part of them; any
/// other dense tensor is cut where its memory begins a page. Threads for which nothing is left are not among them, but
/// the first. Pure.
[[nodiscard]] std::vector<std::vector<PlannedPiece>> divide_among_threads(Storage const& storage, Model const& model,
                                                                          std::vector<PlannedPiece> const& pieces,
                                                                          std::size_t threads);

}  // namespace rankslice
