#pragma once

#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

/// What is no error, and still not as one would expect it.
[[nodiscard]] std::vector<std::string> oddities(Checkpoint const& checkpoint);

}  // namespace rankslice
