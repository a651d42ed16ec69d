#pragma once

#include <string>
#include <string_view>

#include "rankslice/checkpoint.hpp"
#include "rankslice/store.hpp"

namespace rankslice {

/// The manifest of a folder of safetensors files, in the folder itself: `open_checkpoint` looks for it there. It is
/// never a side file.
inline constexpr std::string_view kManifestName = "rankslice.manifest.json";

/// Write down what the files of a checkpoint are (`rankslice.manifest/1`, JSON): size and header of each, the index,
/// and dtype, shape and digests of every tensor, so that a changed byte, or a read that lies, is found from now on. Its
/// bytes depend on nothing else but the version of rankslice. Rank 0 writes it, reads it back and renames it. A
/// manifest proves integrity and no authorship. Collective, with the same arguments on every rank.
/// @param digests of all of the checkpoint's own values: `digest`, or `VerifyReport::read`
/// @throws UsageError for anything but a whole folder of safetensors files; IoError (`cannot_create` when `path` exists
/// and `overwrite` is not set); VerifyError when it reads back differently
void write_manifest(Checkpoint const& checkpoint, Digests const& digests, std::string const& path, Communicator& world,
                    SaveOptions const& options = {});

}  // namespace rankslice
