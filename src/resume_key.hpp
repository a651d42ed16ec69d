#pragma once

#include <functional>
#include <optional>
#include <string>

#include "rankslice/checkpoint.hpp"
#include "rankslice/communicator.hpp"
#include "rankslice/state_dict.hpp"

#include "export_plan.hpp"

namespace rankslice {

// The key of an output: 16 hex digits of all that decides its bytes, so that a later run, on however many ranks and
// from wherever, finds what an earlier one left of the same. Values that stand in files count by the files' sizes,
// times of change, and first and last 64 KiB of tensors, which are read. @throws IoError

/// Of an export of a checkpoint; `originals`: what is copied, if anything is.
[[nodiscard]] std::string resume_key(Checkpoint const& source, ExportTarget const& target,
                                     std::optional<Storage> const& originals);

/// Of an export of a state; `held`: the digests of what all ranks hold of it.
[[nodiscard]] std::string resume_key(Digests const& held, ExportTarget const& target,
                                     std::optional<Storage> const& originals);

/// Of a store.
[[nodiscard]] std::string resume_key(Digests const& held, Checkpoint const& source);

/// Such a key, which rank 0 makes for all. Collective.
[[nodiscard]] std::string shared_key(Communicator& world, std::function<std::string()> const& key);

}  // namespace rankslice
