#pragma once

#include <string>
#include <vector>

#include "rankslice/digest.hpp"
#include "rankslice/state_dict.hpp"

#include "export_plan.hpp"

namespace rankslice {

/// The same tensors as parts of what is exported. Pure.
[[nodiscard]] StateDict as_part_of(ExportTarget const& target, StateDict const& state);

/// Digests without those of tensors that are left out. Pure.
[[nodiscard]] Digests without_left_out(std::vector<bool> const& taken, Digests digests);

/// A changed value cannot go back into the layout of its source. @throws VerifyError with that file and HF key
[[noreturn]] void refuse_changed(std::string const& what, std::string const& why, std::string const& file,
                                 std::string const& key);

/// What was widened by `--dtype` goes back into the layout of its source if it still fits there: what training keeps in
/// F32 may be rounded, the others must not be without a word. @throws VerifyError naming the first that does not fit
void require_fitting(Checkpoint const& source, std::vector<bool> const& taken, Digests const& held,
                     Digests const& exported);

}  // namespace rankslice
