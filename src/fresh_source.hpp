#pragma once

#include "checkpoint_parts.hpp"
#include "model/fresh_model.hpp"

namespace rankslice {

/// Give parts that have native tensors, each listed at least once, but no Hugging Face files, fresh ones: headers and
/// index, no side files. Files are filled in the order of the FQNs. Pure.
/// @throws UsageError for an unknown family, FormatError as `make_fresh_model` and for names that are no UTF-8
void add_fresh_files(CheckpointParts& parts, FreshOptions const& options, std::uint64_t max_file_bytes = kMaxFileBytes);

/// How a checkpoint's experts are exported, so that fresh files can hold them likewise. Pure.
[[nodiscard]] FreshOptions expert_forms(Checkpoint const& checkpoint);

}  // namespace rankslice
