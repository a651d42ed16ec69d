#include "format/sha256_sums.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <optional>

#include "rankslice/error.hpp"

#include "format/quote.hpp"

namespace rankslice {

namespace {

constexpr std::size_t kDigits = 64;

/// The name that a line spells with `\\`, `\n` and `\r`; nothing for any other escape.
std::optional<std::string> unescaped(std::string_view name) {
  std::string result;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (name[i] != '\\') {
      result += name[i];
      continue;
    }
    if (++i == name.size()) return std::nullopt;
    if (name[i] == '\\')
      result += '\\';
    else if (name[i] == 'n')
      result += '\n';
    else if (name[i] == 'r')
      result += '\r';
    else
      return std::nullopt;
  }
  return result;
}

bool leads_out(std::string const& name) {
  std::filesystem::path const path(name);
  return path.is_absolute() || std::ranges::find(path, "..") != path.end();
}

/// Nothing for what is no line of such a list.
std::optional<ListedSum> parse_line(std::string_view line) {
  auto const is_escaped = line.starts_with('\\');
  if (is_escaped) line.remove_prefix(1);
  if (line.size() <= kDigits + 2) return std::nullopt;
  std::string sum(line.substr(0, kDigits));
  for (auto& digit : sum) {
    auto const c = static_cast<unsigned char>(digit);
    if (std::isxdigit(c) == 0) return std::nullopt;
    digit = static_cast<char>(std::tolower(c));
  }
  auto const mark = line.substr(kDigits, 2);  // one space, and one more or the mark of a binary file
  if (mark != "  " && mark != " *") return std::nullopt;
  auto const spelled = line.substr(kDigits + 2);
  auto const name = is_escaped ? unescaped(spelled) : std::string(spelled);
  if (!name || name->find('\0') != std::string::npos) return std::nullopt;
  return ListedSum{.name = *name, .sha256 = std::move(sum)};
}

}  // namespace

std::vector<ListedSum> parse_sha256_sums(std::string_view text, std::string const& path) {
  std::map<std::string, std::string> sums;
  for (std::size_t number = 1; !text.empty(); ++number) {
    auto const end = text.find('\n');
    auto line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with('#')) continue;
    auto const fail = [&](std::string const& problem) {
      throw FormatError(fmt::format("{}: line {}: {}", path, number, problem), path);
    };
    auto const listed = parse_line(line);
    if (!listed) fail(fmt::format("expected 64 hexadecimal digits, two spaces and a name, found {}", in_quotes(line)));
    if (listed->name.empty() || leads_out(listed->name)) {
      fail(fmt::format("expected the name of a file below the folder, found {}", in_quotes(listed->name)));
    }
    auto const name = std::filesystem::path(listed->name).lexically_normal().string();
    auto const [known, is_new] = sums.emplace(name, listed->sha256);
    if (!is_new && known->second != listed->sha256) {
      fail(fmt::format("{} is listed twice, with two sums", in_quotes(name)));
    }
  }
  if (sums.empty()) throw FormatError(path + ": expected lines as sha256sum writes them, found none", path);
  std::vector<ListedSum> list;
  for (auto const& [name, sha256] : sums) list.push_back({name, sha256});
  return list;
}

}  // namespace rankslice
