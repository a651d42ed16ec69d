#pragma once

#include <functional>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// How a step goes on this rank; what it throws becomes what the others are told. The rank is left open.
[[nodiscard]] Outcome outcome_of(std::function<void()> const& step);

/// Throws the exception that a failure's exit code stands for, with its message, file, tensor and rank.
[[noreturn]] void raise(Outcome const& failure);

}  // namespace rankslice
