#pragma once

#include <map>

#include "model/expert_sizes.hpp"
#include "model/family.hpp"

namespace rankslice {

/// How each tensor lies in the checkpoint: grouped experts by their shapes, or as `requested`, where a family's
/// checkpoints differ (rule 61).
/// @throws FormatError for a shape that does not fit E, H and I or the requested layout, or layouts that differ within
/// the checkpoint; UsageError for a shape that fits both layouts when none is requested
[[nodiscard]] std::vector<Layout> find_layouts(MappedCatalog const& mapped, ExpertSizes const& sizes,
                                               ExpertLayout requested);

/// The layout by which the grouped tensors of a catalog have become native ones of these shapes, by FQN; `automatic`
/// when they do not tell, as in families that have one layout only.
[[nodiscard]] ExpertLayout find_expert_layout(Family const& family, TensorCatalog const& catalog,
                                              std::map<std::string_view, Shape> const& native_shapes);

}  // namespace rankslice
