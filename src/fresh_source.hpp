#pragma once

#include <string>
#include <vector>

#include "checkpoint_parts.hpp"

namespace rankslice {

/// Give parts that have native tensors, each listed at least once, but no Hugging Face files, fresh ones: headers and
/// index, no side files. Pure. @throws UsageError for an unknown family, FormatError for names that do not lead back
void add_fresh_files(CheckpointParts& parts, std::uint64_t max_file_bytes = kMaxFileBytes);

}  // namespace rankslice
