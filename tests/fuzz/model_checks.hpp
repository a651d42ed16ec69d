#pragma once

#include "rankslice/checkpoint.hpp"
#include "rankslice/mesh.hpp"

namespace rankslice::fuzz {

/// Every tensor of the catalog is in the model, in its place, and the tensors of each parameter fill it without a hole
/// or an overlap.
void require_filled(TensorCatalog const& catalog, Model const& model);

/// Plans for all ranks of a mesh, where there are any: each replica's slices tile each parameter, the written ones tile
/// it once, sums agree, and what is read lies in the tensor that it is read from.
void require_plans(Checkpoint const& checkpoint, Mesh const& mesh);

/// Fresh files of a checkpoint's native tensors, where they can be made, lead to the same native tensors.
void require_way_back(Checkpoint const& checkpoint);

}  // namespace rankslice::fuzz
