#include "format/hdf5_names.hpp"

#include <fmt/format.h>

#include "rankslice/error.hpp"

namespace rankslice::hdf5 {

std::string escape(std::string_view name) {
  if (name.empty() || name.find('\0') != std::string_view::npos) {
    throw FormatError(fmt::format("a native store cannot hold the name '{}': expected at least one byte and no NUL",
                                  name.substr(0, name.find('\0'))));
  }
  if (name == ".") return "%2E";
  std::string escaped;
  for (auto const c : name) {
    if (c == '/') {
      escaped += "%2F";
    } else if (c == '%') {
      escaped += "%25";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::optional<std::string> unescape(std::string_view escaped) {
  if (escaped == "%2E") return ".";
  if (escaped.empty() || escaped == ".") return std::nullopt;
  std::string name;
  while (!escaped.empty()) {
    if (escaped.starts_with("%2F")) {
      name += '/';
      escaped.remove_prefix(3);
    } else if (escaped.starts_with("%25")) {
      name += '%';
      escaped.remove_prefix(3);
    } else if (escaped[0] == '%' || escaped[0] == '/') {
      return std::nullopt;
    } else {
      name += escaped[0];
      escaped.remove_prefix(1);
    }
  }
  return name;
}

}  // namespace rankslice::hdf5
