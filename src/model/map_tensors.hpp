#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/family.hpp"

namespace rankslice {

/// What is asked for, as in `OpenOptions`.
struct MapOptions {
  ExpertLayout expert_layout = ExpertLayout::automatic;
  std::optional<DType> dtype{};
};

/// Both names, dtypes and shapes of every tensor of a catalog; checked. What is odd is added to `warnings`.
/// @throws FormatError: collisions of names, unsupported layouts, shapes that do not fit config.json, missing experts;
/// UsageError for shapes that fit two layouts when the options say nothing (rule 61).
[[nodiscard]] Model map_tensors(Family const& family, TensorCatalog const& catalog, ModelConfig const& config,
                                MapOptions const& options, std::vector<std::string>& warnings);

/// No table leads a name astray: every FQN comes back from its HF key. @throws FormatError
void check_way_back(Family const& family, Model const& model);

}  // namespace rankslice
