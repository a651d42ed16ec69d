#pragma once

#include <cstdint>
#include <istream>
#include <span>
#include <string>
#include <vector>

#include "rankslice/buffer.hpp"

#include "core/literals.hpp"

namespace rankslice {

inline constexpr std::uint64_t kHugePage = 2_MiB;

/// Why this process cannot have huge pages by asking for them (`madvise`); empty when it can. `root` stands for "/".
[[nodiscard]] std::string why_no_huge_pages(std::string const& root = "");

/// @throws UsageError, which says why, where this process cannot have any
void require_huge_pages();

/// What of some memory could stand on huge pages, being whole ones of it, and what does, in bytes.
struct HugePageShare {
  std::uint64_t possible = 0;
  std::uint64_t found = 0;
};

/// Of host memory that has been written, by what `smaps` says: the text of /proc/self/smaps. Buffers that lie side by
/// side share huge pages.
[[nodiscard]] HugePageShare share_on_huge_pages(std::span<Buffer const> memory, std::istream& smaps);

/// @throws UsageError where the system gave too few for this memory, which has been written
void require_on_huge_pages(std::span<Buffer const> memory);

}  // namespace rankslice
