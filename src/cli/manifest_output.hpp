#pragma once

#include <string>

#include "rankslice/verify.hpp"

#include "cli/job.hpp"

namespace rankslice::cli {

/// Where `--write-manifest` writes; empty without it.
[[nodiscard]] std::string manifest_output(Options const& options);

/// Whether that is the manifest which would else be compared with.
[[nodiscard]] bool writes_to_reference(Options const& options);

/// Look for what is in the way of the manifest before anything is read. Collective. @throws IoError `cannot_create`
void expect_manifest_free(Job& job);

/// The same for one that is there and may only stay if it holds. Collective. @throws IoError `cannot_create`
void expect_manifest_holds(Job& job, Checkpoint const& checkpoint);

/// Write it, or leave alone the one that holds, and report it. Collective. @throws as `rankslice::write_manifest`
void write_manifest(Job& job, Checkpoint const& checkpoint, VerifyReport const& verified);

}  // namespace rankslice::cli
