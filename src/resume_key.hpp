#pragma once

#include <optional>
#include <string>

#include "rankslice/checkpoint.hpp"
#include "rankslice/state_dict.hpp"

#include "export_plan.hpp"

namespace rankslice {

// The key of an output: 16 hex digits of all that decides its bytes, so that a later run, on however many ranks and
// from wherever, finds what an earlier one left of the same. Pure.

/// Of an export of a checkpoint; `originals`: what is copied, if anything is.
[[nodiscard]] std::string resume_key(Checkpoint const& source, ExportTarget const& target,
                                     std::optional<Storage> const& originals);

/// Of an export of a state; `held`: the digests of what all ranks hold of it.
[[nodiscard]] std::string resume_key(Digests const& held, ExportTarget const& target,
                                     std::optional<Storage> const& originals);

/// Of a store.
[[nodiscard]] std::string resume_key(Digests const& held, Checkpoint const& source);

}  // namespace rankslice
