#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace rankslice {

/// What a list of checksums is called in the folder of its files.
inline constexpr std::string_view kSumsName = "SHA256SUMS";

/// A file below the folder of a list.
struct ListedSum {
  std::string name;
  std::string sha256;  ///< 64 hex digits in lower case.
  bool operator==(ListedSum const&) const = default;
};

/// Parse what `sha256sum` prints, with or without the mark of binary files, names escaped where their line begins with
/// a backslash; empty lines and those that begin with `#` are comments. Names lose `./`; those that lead out of the
/// folder are refused, and so are two sums for one name. By name. `path` names the list in errors.
/// @throws FormatError naming the line
[[nodiscard]] std::vector<ListedSum> parse_sha256_sums(std::string_view text, std::string const& path);

}  // namespace rankslice
