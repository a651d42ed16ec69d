#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "rankslice/buffer.hpp"
#include "rankslice/load.hpp"

namespace rankslice {

/// Fresh host memory for many tensors, a buffer for each size: 64-byte aligned, not zeroed by us, not touched. From
/// 128 KiB on a tensor has whole pages of its own, which go back when the last copy of its buffer is dropped. They are
/// cut from one mapping that begins at a huge page, so that tensors which lie side by side share huge pages.
/// @throws std::bad_alloc; UsageError when huge pages are asked for (`on`) and this system or process has none
[[nodiscard]] std::vector<Buffer> allocate_host(std::span<std::uint64_t const> sizes, HugePages pages);

/// The same for one.
[[nodiscard]] Buffer allocate_host(std::uint64_t bytes, HugePages pages = HugePages::automatic);

}  // namespace rankslice
