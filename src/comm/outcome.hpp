#pragma once

#include <functional>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// How a step goes on this rank; what it throws becomes what the others are told. The rank is left open.
[[nodiscard]] Outcome outcome_of(std::function<void()> const& step);

}  // namespace rankslice
