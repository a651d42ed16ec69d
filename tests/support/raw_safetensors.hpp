#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rankslice::test {

/// A header with this JSON as it is, right or wrong: its length and its text.
[[nodiscard]] std::vector<std::byte> raw_header(std::string_view json);

/// … with any number as its length.
[[nodiscard]] std::vector<std::byte> raw_header(std::uint64_t length, std::string_view json);

[[nodiscard]] std::vector<std::byte> bytes_of(std::string_view text);

void write_file(std::string const& path, std::span<std::byte const> bytes);

/// A safetensors file with this JSON and `data_bytes` zeros behind it.
void write_safetensors(std::string const& path, std::string_view json, std::size_t data_bytes);

}  // namespace rankslice::test
