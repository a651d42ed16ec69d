#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rankslice {

/// What the index is called on the Hub.
inline constexpr std::string_view kIndexName = "model.safetensors.index.json";

/// `model.safetensors.index.json`: which shard holds which tensor.
struct HfIndex {
  struct Entry {
    std::string tensor;
    std::size_t shard = 0;  ///< In `shards`.
  };
  std::vector<std::string> shards;          ///< By name, each once.
  std::vector<Entry> entries;               ///< As in the file.
  std::optional<std::uint64_t> total_size;  ///< `metadata.total_size`, where it is a whole number.

  /// How many tensors each shard should hold.
  [[nodiscard]] std::vector<std::size_t> tensors_per_shard() const;
};

/// Parse an index strictly; `file` names it in errors. Names of shards that are absolute, have an empty, `.` or `..`
/// component, a `\` or a control character, or do not end in `.safetensors`, are refused.
/// @throws FormatError
[[nodiscard]] HfIndex parse_hf_index(std::span<std::byte const> json, std::string const& file);

/// What is wrong with the name of a shard; empty for a good one. Names are judged, not where they lead: the shards of
/// the Hub's cache are links out of their folder.
[[nodiscard]] std::string_view fault_of_shard_name(std::string_view name);

}  // namespace rankslice
