#pragma once

#include <string>

#include "rankslice/verify.hpp"

#include "cli/job.hpp"

namespace rankslice::cli {

/// Where `--write-manifest` writes; empty without it.
[[nodiscard]] std::string manifest_output(Options const& options);

/// Whether that is the manifest which would else be compared with.
[[nodiscard]] bool writes_to_reference(Options const& options);

/// Look, before any tensor is read, whether a checkpoint can have a manifest, and for what is in its way: one that is
/// there may only stay if it holds. Collective. @throws UsageError, IoError `cannot_create`
void expect_manifest_writable(Job& job, Checkpoint const& checkpoint);

/// Write it, or leave alone the one that holds, and report it. Collective. @throws as `rankslice::write_manifest`
void write_manifest(Job& job, Checkpoint const& checkpoint, VerifyReport const& verified);

}  // namespace rankslice::cli
