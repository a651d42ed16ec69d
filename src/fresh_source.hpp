#pragma once

#include "checkpoint_parts.hpp"
#include "model/fresh_model.hpp"

namespace rankslice {

/// Give parts that have native tensors, each listed at least once, but no Hugging Face files, fresh ones: headers and
/// index, no side files. Dtypes are those of the native tensors. Pure.
/// @throws UsageError for an unknown family, FormatError as `make_fresh_model`
void add_fresh_files(CheckpointParts& parts, FreshOptions const& options, std::uint64_t max_file_bytes = kMaxFileBytes);

/// How a checkpoint holds its experts, so that fresh files can hold them likewise. Pure.
[[nodiscard]] FreshOptions expert_forms(Checkpoint const& checkpoint);

}  // namespace rankslice
