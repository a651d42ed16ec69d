#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <string_view>

namespace rankslice {

/// Parse a JSON text from outside that must be one object: no name given twice in any object, at most 1024 levels, so
/// that no recursion over the value can run out of stack.
/// @param place says in errors where the text stands
/// @param file names the file in errors
/// @throws FormatError
[[nodiscard]] nlohmann::json parse_json_object(std::string_view text, std::string const& place,
                                               std::string const& file);

}  // namespace rankslice
