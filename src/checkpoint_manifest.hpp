#pragma once

#include "rankslice/checkpoint.hpp"

#include "checkpoint_parts.hpp"
#include "format/manifest.hpp"

namespace rankslice {

/// What the files of a checkpoint are, with digests of all their tensors. Pure.
[[nodiscard]] Manifest make_manifest(Checkpoint const& checkpoint, DigestTable const& digests);

/// Take the digests of the manifest that is asked for, or lies in the folder, into the parts of a checkpoint. One that
/// nobody asked for and that does not match, or is of another version, becomes a warning. Local.
/// @throws IoError, FormatError, UsageError
void take_manifest(CheckpointParts& parts, OpenOptions const& options);

}  // namespace rankslice
