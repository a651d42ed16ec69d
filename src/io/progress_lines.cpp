#include "io/progress_lines.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <optional>

#include "core/fingerprint.hpp"

namespace rankslice {

namespace {

constexpr std::size_t kChecksumDigits = 32;

std::string checksum(std::string_view text) { return xxh3_128(std::as_bytes(std::span(text))); }

/// "first:value,value…" for the values from `first` to the next zero. Returns where that is.
std::size_t append_run(std::string& text, std::vector<std::uint64_t> const& sums, std::size_t first) {
  fmt::format_to(std::back_inserter(text), " {}:", first);
  auto i = first;
  for (; i < sums.size() && sums[i] != 0; ++i) {
    fmt::format_to(std::back_inserter(text), "{}{:x}", i == first ? "" : ",", sums[i]);
  }
  return i;
}

std::string to_text(SegmentRecord const& record) {
  std::string runs;
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < record.sums.size(); ++i) {
    if (record.sums[i] == 0) continue;
    i = append_run(runs, record.sums, i);
    ++count;
  }
  return fmt::format("{} {}{} {}", record.sums.size(), count, runs, record.name);
}

/// Takes a text apart from its front on; what it does not find leaves nothing to find behind it.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  [[nodiscard]] std::optional<std::uint64_t> number(int base) {
    std::uint64_t value = 0;
    auto const [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), value, base);
    if (error != std::errc{}) return std::nullopt;
    text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
    return value;
  }
  [[nodiscard]] bool skip(char expected) {
    if (!text_.starts_with(expected)) return false;
    text_.remove_prefix(1);
    return true;
  }
  [[nodiscard]] std::string_view rest() const { return text_; }

 private:
  std::string_view text_;
};

bool read_run(Scanner& scanner, std::vector<std::uint64_t>& sums) {
  auto const first = scanner.skip(' ') ? scanner.number(10) : std::nullopt;
  if (!first || !scanner.skip(':')) return false;
  auto i = *first;
  do {
    auto const value = scanner.number(16);
    if (!value || i >= sums.size()) return false;
    sums[i++] = *value;
  } while (scanner.skip(','));
  return true;
}

std::optional<SegmentRecord> from_text(std::string_view text) {
  Scanner scanner(text);
  auto const size = scanner.number(10);
  auto const runs = size && scanner.skip(' ') ? scanner.number(10) : std::nullopt;
  if (!runs) return std::nullopt;
  SegmentRecord record;
  record.sums.resize(*size);
  for (std::uint64_t run = 0; run < *runs; ++run) {
    if (!read_run(scanner, record.sums)) return std::nullopt;
  }
  if (!scanner.skip(' ')) return std::nullopt;
  record.name = scanner.rest();
  return record;
}

}  // namespace

std::string checked_line(std::string_view text) { return fmt::format("{} {}\n", checksum(text), text); }

std::string_view take_checked_line(std::string_view& lines) {
  auto const end = lines.find('\n');
  auto const line = lines.substr(0, end);
  lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + 1);
  if (end == std::string_view::npos || line.size() <= kChecksumDigits) return {};
  auto const text = line.substr(kChecksumDigits + 1);
  return line[kChecksumDigits] == ' ' && line.starts_with(checksum(text)) ? text : std::string_view();
}

std::string to_lines(std::span<SegmentRecord const> records) {
  std::string lines;
  for (auto const& record : records) lines += checked_line(to_text(record));
  return lines;
}

std::vector<SegmentRecord> from_lines(std::string_view lines) {
  std::vector<SegmentRecord> records;
  while (!lines.empty()) {
    if (auto record = from_text(take_checked_line(lines))) records.push_back(std::move(*record));
  }
  return records;
}

}  // namespace rankslice
