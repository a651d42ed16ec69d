#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>

#include "rankslice/error.hpp"

/// What libFuzzer calls for every input, and `replay` for every file of the corpus.
extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size);

namespace rankslice::fuzz {

inline std::string_view text_of(std::uint8_t const* data, std::size_t size) {
  return {reinterpret_cast<char const*>(data), size};
}

/// Ends the program, with what does not hold, where an invariant is broken.
inline void require(bool holds, char const* invariant) {
  if (holds) return;
  std::fprintf(stderr, "broken invariant: %s\n", invariant);
  std::abort();
}

/// Runs a step on the input. Whether it takes it: errors that rankslice throws on purpose are no findings, whatever
/// else is thrown ends the program.
template <typename Step>
bool accepts(Step const& step) {
  try {
    step();
    return true;
  } catch (Error const& error) {
    require(error.code != ExitCode::unexpected, error.what());
    require(*error.what() != '\0', "an error says what is wrong");
    return false;
  }
}

/// The text up to a separator, which is cut off with it.
inline std::string_view take_until(std::string_view& text, std::string_view separator) {
  auto const at = text.find(separator);
  auto const taken = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + separator.size());
  return taken;
}

}  // namespace rankslice::fuzz
