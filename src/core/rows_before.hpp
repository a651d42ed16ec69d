#pragma once

#include <cstdint>

#include "rankslice/parameter.hpp"

namespace rankslice {

/// How many rows of `box`, memory or a piece of a file that holds a slice, lie before one row of one part.
[[nodiscard]] inline std::uint64_t rows_before(Slice const& box, std::uint64_t part, std::uint64_t row) {
  return (part - box.part.begin) * box.rows.size() + row - box.rows.begin;
}

/// The bytes before the first element of a slice that lies in a native box. Pure.
[[nodiscard]] inline std::uint64_t bytes_before(Parameter const& parameter, Slice const& box, Slice const& slice) {
  return rows_before(box, slice.part.begin, slice.rows.begin) * parameter.row_bytes(Form::native);
}

/// Which element of the global tensor a slice begins with, row-major. Pure.
[[nodiscard]] inline std::uint64_t first_element(Parameter const& parameter, Slice const& slice) {
  return (slice.part.begin * parameter.row_count() + slice.rows.begin) * parameter.columns();
}

/// Call step(run) for the parts of a slice that are contiguous in the global tensor, and in every box that has them:
/// all of it, or of experts of which it has only some rows one after the other.
template <typename Step>
void for_each_run(Parameter const& parameter, Slice const& slice, Step const& step) {
  if (slice.empty()) return;
  if (slice.rows.size() == parameter.row_count()) return step(slice);
  for (auto part = slice.part.begin; part < slice.part.end; ++part) {
    step(Slice{.part = {part, part + 1}, .rows = slice.rows});
  }
}

}  // namespace rankslice
