#pragma once

#include <vector>

#include "rankslice/mesh.hpp"
#include "rankslice/to_hf.hpp"

#include "hf_target.hpp"
#include "plan/plan.hpp"

namespace rankslice {

/// A Hugging Face checkpoint that is yet to be written of a state or a checkpoint, all of it.
struct ExportTarget {
  Model model;  ///< As the files have it; parameters under the numbers that they have in the source.
  HfTarget files;
  std::vector<bool> taken;  ///< Which tensors of `model` are written.
  /// The model is not the source's own: values are written as they are held, and not as they were read.
  bool converted = false;
};

/// Whether headers are the source's own, and which tensors are written, by their keys in the export. Pure.
/// @throws PlanError when none is; UsageError for options that contradict each other; FormatError as `make_target`
[[nodiscard]] ExportTarget make_export_target(Checkpoint const& source, ExportOptions const& options);

/// Whether tensors of a target cannot be computed from the values that are held of them, and are copied.
[[nodiscard]] bool has_copies(ExportTarget const& target);

/// The checkpoint from which an export copies: that of the options, or else `source` itself.
/// @throws UsageError when neither is a Hugging Face checkpoint; IoError when it is not the one that `source` is of
[[nodiscard]] Checkpoint const& copied_from(Checkpoint const& source, ExportOptions const& options);

/// What one rank does to write a target.
struct ExportSlices {
  std::vector<PlannedSlice> computed;  ///< Written from what it holds.
  std::vector<PlannedSlice> compared;  ///< Held, and compared with what is copied in its place …
  std::vector<PlannedSlice> copied;    ///< … by all ranks, each whole rows.
};

/// To write some units of it. Pure.
[[nodiscard]] ExportSlices plan_export(ExportTarget const& target, Holdings const& holdings, int rank,
                                       std::vector<PlannedSlice> const& units);

/// Which tensors of `model` belong to units of which `target` takes any. Pure.
[[nodiscard]] std::vector<bool> tensors_to_read(ExportTarget const& target, Model const& model);

}  // namespace rankslice
