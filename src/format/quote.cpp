#include "format/quote.hpp"

#include <fmt/format.h>
#include <simdjson.h>

namespace rankslice {

namespace {

constexpr std::size_t kLongestQuote = 200;

bool is_control(unsigned char byte) { return byte < 0x20 || byte == 0x7f; }
bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

}  // namespace

std::string shortened(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return std::string(text);
  while (limit > 0 && is_continuation(text[limit])) --limit;
  return std::string(text.substr(0, limit)) + "…";
}

std::string in_quotes(std::string_view text) {
  auto const is_utf8 = simdjson::validate_utf8(text.data(), text.size());
  std::string escaped;
  for (auto const c : shortened(text, kLongestQuote)) {
    auto const byte = static_cast<unsigned char>(c);
    if (is_control(byte) || (byte >= 0x80 && !is_utf8)) {
      escaped += fmt::format("\\x{:02x}", byte);
    } else {
      escaped += c;
    }
  }
  return '"' + escaped + '"';
}

}  // namespace rankslice
