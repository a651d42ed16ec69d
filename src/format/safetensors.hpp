#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

namespace rankslice {

/// The largest header the format allows, in bytes.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

struct SafetensorsHeader {
  struct Tensor {
    std::string name;
    DType dtype = DType::BF16;
    Shape shape;
    Range bytes;  ///< From the start of the file.
  };
  std::uint64_t size = 0;                       ///< Of length field, JSON and padding: where tensor data begins.
  std::vector<Tensor> tensors;                  ///< By (first byte, last byte, name).
  std::map<std::string, std::string> metadata;  ///< `__metadata__`
};

/// The length of the whole header (length field included) from the first 8 bytes of a file of `file_size` bytes.
/// @throws FormatError
[[nodiscard]] std::uint64_t safetensors_header_size(std::span<std::byte const> first_bytes, std::uint64_t file_size,
                                                    std::string const& file);

/// Parse a header strictly: `header` is length field, JSON and padding; `file_size` that of the file it is from; `file`
/// names it in errors. Accepts what the reference implementation accepts (and `-0` as 0), except duplicate keys, names
/// with a NUL byte, and what it takes for an object though it is none: a null `__metadata__`, a tensor as an array.
/// @throws FormatError naming file, tensor, offset, expected and found.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::span<std::byte const> header, std::uint64_t file_size,
                                                         std::string const& file);

/// Read the raw header of a file. @throws IoError, FormatError
[[nodiscard]] std::vector<std::byte> read_safetensors_header(class FileReader& reader, std::string const& file);

/// A fresh header, byte for byte as the reference writer makes it: dtypes by descending alignment, then names; data
/// offsets without holes; JSON padded with spaces to a multiple of 8; metadata by key. Returns the raw bytes; tensors
/// lie in the order given by parsing it.
/// @param tensors name, dtype and shape (`bytes` is ignored); names are distinct and UTF-8.
/// @throws FormatError for a shape that is no whole number of bytes, and for a header above `kMaxHeaderBytes`.
[[nodiscard]] std::vector<std::byte> make_safetensors_header(std::vector<SafetensorsHeader::Tensor> tensors,
                                                             std::map<std::string, std::string> const& metadata);

}  // namespace rankslice
