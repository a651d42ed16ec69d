#pragma once

#include <optional>
#include <string>

#include "rankslice/error.hpp"
#include "rankslice/to_hf.hpp"

namespace rankslice::python {

/// What a word stands for, or UsageError with the argument that has it.
template <typename Value>
Value known(std::optional<Value> const& value, std::string const& argument, std::string const& given) {
  if (!value) throw UsageError(argument + ": there is no " + given);
  return *value;
}

[[nodiscard]] std::optional<ExportLayout> parse_export_layout(std::string const& name);
[[nodiscard]] std::optional<GdnDtype> parse_gdn_dtype(std::string const& name);

}  // namespace rankslice::python
