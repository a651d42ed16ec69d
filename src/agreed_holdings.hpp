#pragma once

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"

#include "core/holdings.hpp"

namespace rankslice {

/// What all ranks hold. Where it is as the mesh says, they only tell one another so; else four bytes for each parameter
/// travel from every rank, and its slices, of which a model with many layers has few that are not the same. A tensor
/// that a rank lacks is one of which it holds nothing. Every rank passes a consistent state of the same mesh and model.
/// Collective. @throws VerifyError on every rank when something was damaged on the way
[[nodiscard]] Holdings agree_on_holdings(StateDict const& state, Communicator& world);

}  // namespace rankslice
