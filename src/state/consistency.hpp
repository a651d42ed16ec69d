#pragma once

#include <string>

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"

namespace rankslice {

/// A state is what its fields and its source say: every local tensor stands under its own FQN, is a part of the global
/// tensor (`slice_at`), in a buffer of just that size; the coordinate is one of the mesh. Callers may have rebuilt any
/// of it, so this comes before anything else is done with a state. Local.
/// @throws PlanError naming the tensor, expected and found.
void require_consistent(StateDict const& state);

/// The same, and this is the rank whose state it is, among as many as the mesh has. Local. @throws PlanError
void require_consistent(StateDict const& state, Communicator const& world);

/// Every rank passes the same mesh, with as many ranks as there are. Collective. @throws PlanError
void require_same_mesh(Mesh const& mesh, Communicator& world);

/// Every rank has the `fingerprint` of rank 0; all are of the same length. Collective.
/// @throws PlanError, which says `problem`, of a rank that has not.
void require_same(std::string const& fingerprint, std::string const& problem, Communicator& world);

/// Every rank passes the same options of a call; `options` is what they say ("verify level full"). Ranks that differ
/// would take different steps, and wait for one another. Collective. @throws PlanError naming a rank that differs
void require_same_options(std::string const& options, Communicator& world);

/// What the ranks must have alike of a state's source: the Hugging Face files, what they are taken for (the family, and
/// names, dtypes, layouts and global shapes of the parameters), and the digests that are recorded of them: ranks that
/// know of other references, or of none, would take different steps. 32 hex digits.
[[nodiscard]] std::string model_fingerprint(Checkpoint const& source);

/// What the ranks must have alike of a checkpoint that they read together: the above, and in which form it is stored.
/// 32 hex digits.
[[nodiscard]] std::string checkpoint_fingerprint(Checkpoint const& checkpoint);

/// Every rank passes the same checkpoint. Collective. @throws PlanError naming a rank that does not
void require_same_checkpoint(Checkpoint const& checkpoint, Communicator& world);

/// "digests of its manifest", "no recorded digests": for errors of ranks that differ.
[[nodiscard]] std::string describe_recorded(Checkpoint const& checkpoint);

/// What must be so before the ranks save a state together, as each plans its own part alone: the state of every rank is
/// consistent, and mesh and source are the same everywhere. Collective. @throws PlanError
void require_agreement(StateDict const& state, Communicator& world);

}  // namespace rankslice
