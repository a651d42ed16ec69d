#pragma once

#include <map>
#include <optional>
#include <string>

#include "rankslice/checkpoint.hpp"
#include "rankslice/mesh.hpp"

#include "format/safetensors.hpp"

namespace rankslice {

/// What `__metadata__` of `rank-00000.safetensors`, … says: whose tensors these are and where they stand in the whole.
struct ShardMetadata {
  struct Place {
    Shape global_shape;
    Shape offsets;
    std::optional<DType> hf_dtype{};  ///< In that checkpoint, where it is another one.
  };
  Mesh mesh;
  MeshCoordinate coordinate;
  std::string family;
  std::string source;              ///< Path of the checkpoint that was loaded; empty when there was none.
  std::string source_fingerprint;  ///< Of that checkpoint.
  std::string fingerprint;         ///< Of what was loaded of it: another one when it was a selection.
  HeaderOrigin headers = HeaderOrigin::source;
  std::string expert_layout;             ///< "hub" or "transformers": how that checkpoint held grouped experts.
  std::string decoder_experts;           ///< "grouped" or "split" …
  std::string mtp_experts;               ///< … likewise
  std::map<std::string, Place> tensors;  ///< By FQN.
};

/// "rank-00003.safetensors"
[[nodiscard]] std::string shard_file_name(int rank);

/// As string -> string, the only metadata that safetensors has. Pure.
[[nodiscard]] std::map<std::string, std::string> to_metadata(ShardMetadata const& shard);

/// @throws FormatError naming `file` and the field that is missing or wrong.
[[nodiscard]] ShardMetadata parse_shard_metadata(std::map<std::string, std::string> const& metadata,
                                                 std::string const& file);

}  // namespace rankslice
