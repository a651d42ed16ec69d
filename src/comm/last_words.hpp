#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace rankslice {

/// How a line is written that says why the process ends. `known_now`: it is written at once; else it is kept until then
/// by someone who can do no more than write it, and cannot say when that is.
using LastWords = std::function<std::string(std::string_view message, bool known_now)>;

/// From now on, for communicators that print before they end the process: instead of "rankslice: error: MESSAGE". An
/// empty one brings that back. One thread at a time.
void write_last_words_as(LastWords form);

/// The line, with its end.
[[nodiscard]] std::string last_words(std::string_view message, bool known_now);

}  // namespace rankslice
