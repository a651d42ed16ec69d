#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace rankslice {

/// XXH3-128 of the bytes as 32 hex digits, high half first. Tells corruption from health, not friend from foe.
[[nodiscard]] std::string xxh3_128(std::span<std::byte const> bytes);

}  // namespace rankslice
