#pragma once

#include <vector>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

/// `select_tensors` by number. Pure. @throws PlanError
[[nodiscard]] Checkpoint with_tensors(Checkpoint const& checkpoint, std::vector<bool> const& taken);

}  // namespace rankslice
