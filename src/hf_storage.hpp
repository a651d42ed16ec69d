#pragma once

#include <vector>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

/// Where the tensors of a catalog, which may lack some of the model's, lie in its files, as pieces of the parameters
/// that they make up. Pure.
[[nodiscard]] std::vector<StoredPiece> hf_pieces(TensorCatalog const& catalog, Model const& model);

}  // namespace rankslice
