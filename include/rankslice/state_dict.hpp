#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/buffer.hpp"
#include "rankslice/checkpoint.hpp"
#include "rankslice/mesh.hpp"

namespace rankslice {

/// The local tensor of one rank, contiguous and row-major in the native form, and its place in the global one: a box of
/// stacked experts and their rows, or of a dense tensor some of axis 0. `load` gives every rank what the mesh says;
/// other libraries divide tensors in ways of their own (FSDP).
struct ShardedTensor {
  Parameter parameter;
  Shape local_shape;
  Shape offsets;                      ///< Of the local tensor in the global one, per axis.
  std::vector<Placement> placements;  ///< Rule 16, of what must be the mesh's: in its order. Of other parts empty.
  Buffer data;
  std::uint32_t index = 0;  ///< In `Model::parameters` of the source.

  /// Empty for a place that is no such part.
  [[nodiscard]] Slice slice() const;
};

/// FQN -> local tensor: what one rank holds of a checkpoint. Free a tensor by erasing it. Whatever is changed here,
/// each tensor under its own FQN must stay a part of a parameter of `source`; who takes a state checks that
/// (PlanError).
struct StateDict {
  std::map<std::string, ShardedTensor, std::less<>> tensors;
  Mesh mesh;  ///< The same on every rank.
  MeshCoordinate coordinate;
  /// Where it came from, and the form to which `to_hf` brings it back; of a selection, only what was selected.
  /// Never null.
  std::shared_ptr<Checkpoint const> source;
  /// What was read, digested in the staging buffers, and, for converted tensors, what left them (`digest.md`). Empty
  /// when loading did not digest.
  Digests read;
};

}  // namespace rankslice
