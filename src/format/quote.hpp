#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace rankslice {

/// Text of any length, cut to at most `limit` bytes and a mark, never inside of a UTF-8 character.
[[nodiscard]] std::string shortened(std::string_view text, std::size_t limit);

/// Text from a file, fit for one line of a message: in double quotes, shortened, control characters and bytes that are
/// no UTF-8 escaped as `\xNN`.
[[nodiscard]] std::string in_quotes(std::string_view text);

}  // namespace rankslice
