#pragma once

#include <optional>
#include <string>

#include "rankslice/error.hpp"

namespace rankslice::python {

/// What a word stands for, or UsageError with the argument that has it.
template <typename Value>
Value known(std::optional<Value> const& value, std::string const& argument, std::string const& given) {
  if (!value) throw UsageError(argument + ": there is no " + given);
  return *value;
}

}  // namespace rankslice::python
