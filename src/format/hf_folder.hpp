#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

/// Largest file that is carried along as a side file.
inline constexpr std::uint64_t kMaxSideFileBytes = std::uint64_t{256} << 20;

/// Read what `HfLayout` holds from a folder as on the Hub: the index and the headers of the shards it names; without
/// an index, the headers of all `*.safetensors` of the top level. Cache symlinks are followed; names of shards that are
/// absolute, contain `..`, empty components, `\`, control characters or do not end in `.safetensors` are refused.
/// Other files of the top level are side files, unless they are large, weights of another format or our own: those are
/// left out. Adds what is odd but no error to `warnings`. Headers of many files are read by up to 8 threads, or by up
/// to so many as are given. Local.
/// @throws IoError `input_missing` when folder, shards or tensors are missing, FormatError.
[[nodiscard]] HfLayout read_hf_folder(std::string const& folder, std::vector<std::string>& warnings, int threads = 0);

/// The catalog that the headers and the index of a layout describe, with files placed below `folder` (without paths
/// when that is empty: they are nowhere), and checked against the index: each tensor in the shard that the index names,
/// none missing, none in two shards, none left over. Headers of many tensors are parsed by up to `threads` threads.
/// Pure.
/// @throws FormatError
[[nodiscard]] TensorCatalog make_catalog(HfLayout const& layout, std::string const& folder,
                                         std::vector<std::string>& warnings, std::size_t threads = 1);

}  // namespace rankslice
