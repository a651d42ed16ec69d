#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/store.hpp"

// The metadata of a native store, made by one process. The order of things:
//   create_store → all ranks write tensor bytes at the offsets, and sync → complete_store
// Nothing here is collective. A store that failed half-way is left for the caller to remove.
namespace rankslice {

/// Where the tensor bytes of a new store belong.
struct StoreLayout {
  std::vector<std::uint64_t> offsets;  ///< Of the first byte of each tensor, in the given order; 0 for empty ones.
  std::uint64_t file_size = 0;
};

/// Create a store with everything but the tensor bytes, for which it reserves the blocks. The contents'
/// tensors, their `offset` apart, family, `hf` (side files are copied from where they lie; `left_out` is not kept) and
/// digests.
/// @throws IoError `cannot_create` when `path` exists or has no room, `io` when a read or write fails; FormatError
/// for a side file that does not have its recorded checksum, or a name that cannot be stored.
[[nodiscard]] StoreLayout create_store(std::string const& path, StoreContents const& contents);

/// Where the tensor bytes belong of a store that `create_store` has made of just these contents, completed or not, and
/// of which only they may be missing or wrong; nothing for anything else. @throws IoError
[[nodiscard]] std::optional<StoreLayout> find_store(std::string const& path, StoreContents const& contents);

/// Read the metadata back and mark the store as complete, if it is not yet: from now on it can be opened. The tensor
/// bytes must be synced.
/// @throws FormatError when what is read back is damaged, IoError
void complete_store(std::string const& path);

}  // namespace rankslice
