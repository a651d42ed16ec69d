#pragma once

#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "transform/transfer.hpp"

namespace rankslice {

// The files of a Hugging Face checkpoint but for the tensor bytes. Local; each file is synced and closed when it is
// made, and read back. `done` is called per block, and per file for what is slow without moving bytes.

/// Every shard at its full size with its header, below an existing folder: a full disk shows here, before a byte is
/// moved. Of a folder that an earlier run has left, those that are just that stay, and all else is removed. Returns
/// which of the files are new.
/// @throws IoError, VerifyError when a header reads back differently
std::vector<bool> create_hf_files(HfLayout const& layout, std::string const& folder, BlockDone const& done);

/// Side files, and the index last: a folder without it is no checkpoint.
/// @throws IoError, FormatError for a side file that does not have its recorded checksum, VerifyError
void add_other_files(HfLayout const& layout, std::string const& folder, BlockDone const& done);

/// Side files whose checksum a store recorded still have it. @throws FormatError, IoError
void check_side_files(HfLayout const& layout, BlockDone const& done);

}  // namespace rankslice
