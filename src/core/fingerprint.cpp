#include "core/fingerprint.hpp"

#include <fmt/format.h>
#include <xxhash.h>

namespace rankslice {

std::string xxh3_128(std::span<std::byte const> bytes) {
  auto const hash = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace rankslice
