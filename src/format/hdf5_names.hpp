#pragma once

#include <optional>
#include <string>
#include <string_view>

// The names inside a native store, format native/1:
//
//   /                              rankslice_format, family, complete
//   /state_dict/<FQN>              one tensor, global native shape
//   /digest/source/<HF key>        U64 [sum, d(0), d(1), …] of the tensor as the HF files store it
//   /digest/stored/<HF key>        the same of the values stored here, where they were converted
//   /source/files/<name>           U8: length field, JSON and padding of a safetensors file; file_size, checksum
//   /source/index/<name>           U8: the raw index, when there is one; checksum
//   /source/side_files/<name>      U8: a file that is carried along; checksum
//
// Every dataset has the attribute safetensors_dtype. A checksum is XXH3-128, 32 hex digits. `complete` is the checksum
// of all of this but the tensor bytes (hdf5_seal.hpp). Strings have a fixed length and are UTF-8: HDF5 keeps
// those of variable length in heaps without a checksum, and 1.10 reads a damaged one past its buffer.
namespace rankslice::hdf5 {

inline constexpr std::string_view kFormatVersion = "native/1";

inline constexpr auto kFormatAttribute = "rankslice_format";
inline constexpr auto kFamilyAttribute = "family";
inline constexpr auto kHeadersAttribute = "headers";  ///< Of fresh ones only.
inline constexpr auto kCompleteAttribute = "complete";
inline constexpr auto kDTypeAttribute = "safetensors_dtype";
inline constexpr auto kShapeAttribute = "safetensors_shape";  ///< Of sub-byte tensors only.
inline constexpr auto kChecksumAttribute = "checksum";
inline constexpr auto kFileSizeAttribute = "file_size";

inline constexpr auto kStateDictGroup = "/state_dict";
inline constexpr auto kDigestGroup = "/digest";
inline constexpr auto kDigestSourceGroup = "/digest/source";
inline constexpr auto kDigestStoredGroup = "/digest/stored";
inline constexpr auto kSourceGroup = "/source";
inline constexpr auto kFilesGroup = "/source/files";
inline constexpr auto kIndexGroup = "/source/index";
inline constexpr auto kSideFilesGroup = "/source/side_files";

/// A name as HDF5 can take it: `/` as %2F, `%` as %25, a name that is just `.` as %2E.
/// @throws FormatError for an empty name and for one with a NUL, which HDF5 cannot take in any form.
[[nodiscard]] std::string escape(std::string_view name);

/// The inverse; nothing for a string that `escape` never makes, so that no two datasets can have the same name.
[[nodiscard]] std::optional<std::string> unescape(std::string_view escaped);

}  // namespace rankslice::hdf5
