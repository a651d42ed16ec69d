#pragma once

#include <simdjson.h>

#include <cstddef>
#include <span>
#include <string>

namespace rankslice {

/// A JSON text that must be one object, parsed strictly: UTF-8 without byte order mark, no lone surrogates, numbers
/// that fit 64 bits, at most 1024 levels. Objects keep duplicate keys, for the caller to refuse.
class StrictJson {
 public:
  /// @param text the bytes of the JSON
  /// @param offset of `text` in the file
  /// @param file names the file in errors
  /// @throws FormatError naming file, offset and, inside of a member of the root, that member.
  StrictJson(std::span<std::byte const> text, std::size_t offset, std::string const& file);
  StrictJson(StrictJson const&) = delete;  // the root points into the parser
  StrictJson& operator=(StrictJson const&) = delete;

  /// Valid as long as this is.
  [[nodiscard]] simdjson::dom::object root() const { return root_; }

 private:
  simdjson::dom::parser parser_;
  simdjson::dom::object root_;
};

/// A value as JSON, cut where it is long, for "found" in messages.
[[nodiscard]] std::string excerpt(simdjson::dom::element const& value);

}  // namespace rankslice
