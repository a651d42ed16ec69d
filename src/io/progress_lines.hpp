#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rankslice {

/// A part of an output that is written and read back, and what is known of its values.
struct SegmentRecord {
  std::string name;                 ///< Without line breaks.
  std::vector<std::uint64_t> sums;  ///< Of its digest tables.
  bool operator==(SegmentRecord const&) const = default;
};

/// `text` behind its checksum, and a line break.
[[nodiscard]] std::string checked_line(std::string_view text);
/// Cuts the first line off `lines`, and gives back its text: nothing where it is damaged, or has no line break.
[[nodiscard]] std::string_view take_checked_line(std::string_view& lines);

/// A checked line for each: its sums without the zeros, which most are.
[[nodiscard]] std::string to_lines(std::span<SegmentRecord const> records);
/// The inverse. Lines that are damaged, or cut short, are as if they were not there.
[[nodiscard]] std::vector<SegmentRecord> from_lines(std::string_view lines);

}  // namespace rankslice
