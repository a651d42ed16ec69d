#pragma once

#include <optional>
#include <string>

#include "rankslice/checkpoint.hpp"

#include "facts/words.hpp"

namespace rankslice {

/// What a person asks first of a checkpoint, or of a selection of it: what `rankslice inspect --json` prints.
/// `asked_for_dtype`: it was opened with one. Pure.
[[nodiscard]] Json summarize_checkpoint(Checkpoint const& checkpoint, bool asked_for_dtype);

/// The same of a folder or store that `open_checkpoint` refused with `error`, as far as it is known without a model.
/// Nothing when not even its headers can be read. Local.
[[nodiscard]] std::optional<Json> summarize_unmapped(std::string const& path, OpenOptions options, Error const& error);

/// Either of them for people: the lines that `rankslice inspect` prints.
[[nodiscard]] std::string inspection_text(Json const& summary);

}  // namespace rankslice
