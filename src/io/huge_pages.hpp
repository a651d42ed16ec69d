#pragma once

#include <cstdint>
#include <istream>
#include <span>
#include <string>
#include <vector>

#include "rankslice/buffer.hpp"

namespace rankslice {

/// How large a huge page is: 2 MiB on most systems, 512 MiB where pages have 64 KiB. `root` stands for "/".
[[nodiscard]] std::uint64_t huge_page_bytes(std::string const& root = "");

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
/// side share huge pages. The system joins mappings that touch: of what it found in one, at most what this memory could
/// have of it is counted.
[[nodiscard]] HugePageShare share_on_huge_pages(std::span<Buffer const> memory, std::istream& smaps,
                                                std::uint64_t huge_page = huge_page_bytes());

/// @throws UsageError where the system gave too few for this memory, which has been written
void require_on_huge_pages(std::span<Buffer const> memory);

}  // namespace rankslice
