#pragma once

#include <string>

#include "io/file.hpp"

namespace rankslice::hdf5 {

/// Whether the file begins with the signature of HDF5.
[[nodiscard]] bool has_signature(FileReader& reader);

/// Check, before HDF5 sees the file, that it is one whose metadata carries checksums and that it was not cut short.
/// @throws FormatError
void check_superblock(FileReader& reader, std::uint64_t file_size);

}  // namespace rankslice::hdf5
