#pragma once

#include "rankslice/checkpoint.hpp"
#include "rankslice/communicator.hpp"
#include "rankslice/options.hpp"

namespace rankslice {

/// Every copy of a tensor, or of an expert, in a folder of shards is the same: only one of them will be used, and what
/// was changed in another would be lost without a word. The ranks share the files. Nothing to do for other formats.
/// Collective. @throws VerifyError naming the tensor and the files that differ; IoError, FormatError
void require_equal_copies(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call);

}  // namespace rankslice
