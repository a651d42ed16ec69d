#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rankslice/dtype.hpp"

#include "core/literals.hpp"

namespace rankslice {

/// Consecutive items of together at least 1 GiB, but for the last ones, as ranges of their numbers: what is known of
/// the reads of one batch takes little memory, however much is read in all.
template <typename Items, typename BytesOf>
[[nodiscard]] std::vector<Range> in_batches(Items const& items, BytesOf const& bytes_of) {
  std::vector<Range> batches;
  std::uint64_t bytes = 1_GiB;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (bytes >= 1_GiB) {
      batches.push_back({i, i});
      bytes = 0;
    }
    batches.back().end = i + 1;
    bytes += bytes_of(items[i]);
  }
  return batches;
}

}  // namespace rankslice
