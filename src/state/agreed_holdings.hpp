#pragma once

#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"

#include "core/holdings.hpp"

namespace rankslice {

/// What all ranks hold. Costs the ranks of a state as its mesh says one number; else three for each parameter, and a
/// slice for every way in which parameters are divided, of which a model with many layers has few. A tensor that a rank
/// lacks is one of which it holds nothing. Every rank passes a consistent state of the same mesh and model. Collective.
[[nodiscard]] Holdings agree_on_holdings(StateDict const& state, Communicator& world);

}  // namespace rankslice
