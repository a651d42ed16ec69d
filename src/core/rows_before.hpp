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

}  // namespace rankslice
