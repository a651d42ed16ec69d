#pragma once

#include <vector>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

/// `select_tensors` by number. Pure. @throws PlanError, FormatError as `make_target`
[[nodiscard]] Checkpoint keep_tensors(Checkpoint const& checkpoint, std::vector<bool> const& taken);

}  // namespace rankslice
