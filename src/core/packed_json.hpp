#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace rankslice {

/// JSON as ranks send it to each other: CBOR, which keeps numbers and strings of any bytes.
[[nodiscard]] inline std::vector<std::byte> pack_json(nlohmann::json const& value) {
  auto const packed = nlohmann::json::to_cbor(value);
  auto const bytes = std::as_bytes(std::span(packed));
  return {bytes.begin(), bytes.end()};
}

/// The inverse of `pack_json`.
[[nodiscard]] inline nlohmann::json unpack_json(std::span<std::byte const> bytes) {
  auto const* const data = reinterpret_cast<std::uint8_t const*>(bytes.data());
  return nlohmann::json::from_cbor(data, data + bytes.size());
}

}  // namespace rankslice
