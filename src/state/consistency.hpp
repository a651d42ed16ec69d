#pragma once

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"

namespace rankslice {

/// A local tensor is what its own fields and the source say: a part of the global tensor that lies inside it, whole in
/// all axes but the experts', in a buffer of just that size. Callers may have rebuilt any of it. Local.
/// @throws PlanError naming the tensor, expected and found.
void require_consistent(ShardedTensor const& tensor, Checkpoint const& source);

/// The same for all tensors, and that the ranks are those of the mesh for which the state was loaded. Local.
/// @throws PlanError
void require_consistent(StateDict const& state, Communicator const& world);

/// All ranks hold a state of the same tensors: names, dtypes and global shapes. Collective. @throws PlanError
void require_same_source(StateDict const& state, Communicator& world);

}  // namespace rankslice
