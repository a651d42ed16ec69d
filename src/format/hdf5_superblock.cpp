#include "format/hdf5_superblock.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "rankslice/error.hpp"

namespace rankslice::hdf5 {

namespace {

using Byte = unsigned char;

constexpr std::array<Byte, 8> kSignature{0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

// Versions 2 and 3: signature, version, size of offsets, size of lengths, flags, base address, extension address, end
// of file, root group, checksum. Versions 0 and 1 belong to metadata without checksums.
constexpr std::size_t kSuperblockBytes = 48;
constexpr std::size_t kVersionAt = 8;
constexpr std::size_t kOffsetSizeAt = 9;
constexpr std::size_t kLengthSizeAt = 10;
constexpr std::size_t kBaseAt = 12;
constexpr std::size_t kEndAt = 28;

std::array<Byte, kSuperblockBytes> first_bytes(FileReader& reader, std::uint64_t file_size) {
  std::array<Byte, kSuperblockBytes> bytes{};
  auto const found = std::min<std::uint64_t>(bytes.size(), file_size);
  reader.read(std::as_writable_bytes(std::span(bytes)).first(found), 0);
  return bytes;
}

bool begins_with_signature(std::array<Byte, kSuperblockBytes> const& bytes) {
  return std::equal(kSignature.begin(), kSignature.end(), bytes.begin());
}

std::uint64_t number_at(std::array<Byte, kSuperblockBytes> const& bytes, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

}  // namespace

bool has_signature(FileReader& reader) { return begins_with_signature(first_bytes(reader, reader.identity().size)); }

void check_superblock(FileReader& reader, std::uint64_t file_size) {
  auto const& path = reader.path();
  auto const bytes = first_bytes(reader, file_size);
  if (!begins_with_signature(bytes)) throw FormatError(path + ": does not begin with the signature of HDF5", path);
  if (file_size < kSuperblockBytes) {
    throw FormatError(
        fmt::format("{}: truncated: expected at least {} bytes, found {}", path, kSuperblockBytes, file_size), path);
  }
  auto const version = bytes[kVersionAt];
  if (version != 2 && version != 3) {
    throw FormatError(
        fmt::format("{}: byte {}: expected superblock version 2 or 3, found {}", path, kVersionAt, version), path);
  }
  if (bytes[kOffsetSizeAt] != 8 || bytes[kLengthSizeAt] != 8 || number_at(bytes, kBaseAt) != 0) {
    throw FormatError(fmt::format("{}: expected 8-byte offsets and lengths from byte 0, found {} and {} from byte {}",
                                  path, bytes[kOffsetSizeAt], bytes[kLengthSizeAt], number_at(bytes, kBaseAt)),
                      path);
  }
  if (auto const end = number_at(bytes, kEndAt); end > file_size) {
    throw FormatError(fmt::format("{}: truncated: expected {} bytes, found {}", path, end, file_size), path);
  }
}

}  // namespace rankslice::hdf5
