#include "support/raw_safetensors.hpp"

#include <algorithm>
#include <fstream>
#include <stdexcept>

namespace rankslice::test {

std::vector<std::byte> raw_header(std::string_view json) { return raw_header(json.size(), json); }

std::vector<std::byte> raw_header(std::uint64_t length, std::string_view json) {
  std::vector<std::byte> header(8 + json.size());
  for (std::size_t i = 0; i < 8; ++i) header[i] = static_cast<std::byte>(length >> (8 * i));
  std::ranges::copy(std::as_bytes(std::span(json)), header.begin() + 8);
  return header;
}

std::vector<std::byte> bytes_of(std::string_view text) {
  auto const bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

void write_file(std::string const& path, std::span<std::byte const> bytes) {
  std::ofstream stream(path, std::ios::binary);
  stream.write(reinterpret_cast<char const*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream.flush()) throw std::runtime_error("cannot write " + path);
}

void write_safetensors(std::string const& path, std::string_view json, std::size_t data_bytes) {
  auto file = raw_header(json);
  file.resize(file.size() + data_bytes);
  write_file(path, file);
}

}  // namespace rankslice::test
