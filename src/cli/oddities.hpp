#pragma once

#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

namespace rankslice::cli {

/// What is no error, and still not as one would expect it.
[[nodiscard]] std::vector<std::string> oddities(Checkpoint const& checkpoint);

}  // namespace rankslice::cli
