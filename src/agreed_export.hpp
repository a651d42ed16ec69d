#pragma once

#include <optional>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/to_hf.hpp"

#include "export_plan.hpp"
#include "plan/gather_plan.hpp"
#include "plan/segments.hpp"

namespace rankslice {

/// An export that the ranks have agreed on: the same on each of them.
struct ExportPlan {
  ExportTarget target;
  Storage files;  ///< Where its tensors go, below a folder that is not known yet.
  std::vector<Segment> segments;
  GatherOwners owners;
  std::optional<GatherPlan> gather;  ///< Of all of it, where one rank writes what all of them have.
  std::optional<Storage> originals;  ///< Of what is copied.
  std::string copied_from;           ///< Their folder.
  std::optional<Digests> recorded;   ///< Of them, in the order of the target's tensors, if they have a manifest.
  std::string recorded_by;           ///< That.
};

/// Who writes what is gathered.
inline constexpr int kWriter = 0;

/// Every rank's part of the same files. Collective.
[[nodiscard]] ExportPlan agree_on_export(Checkpoint const& source, GatherOwners const& owners, Communicator& world,
                                         ExportOptions const& options);

/// What one rank does to write some units.
struct ExportPart {
  ExportSlices slices;
  std::optional<GatherPlan> gather;  ///< Of the units.
};

/// Pure, as are the others.
[[nodiscard]] ExportPart part_of(ExportPlan const& plan, std::vector<PlannedSlice> const& units, int rank);
/// What a rank takes of its own source for that, but for what is compared: to write it, or to send it to who does.
[[nodiscard]] std::vector<PlannedSlice> taken_for(ExportPart const& part, int rank);
/// All of what a rank holds and compares with what is copied in its place.
[[nodiscard]] std::vector<PlannedSlice> compared_slices(ExportPlan const& plan, int rank);

/// Whether a tensor of a target that has copies is one.
[[nodiscard]] bool is_copied(ExportTarget const& target, std::size_t tensor);
/// Digests of what is copied, without those of all else.
[[nodiscard]] Digests of_copies(ExportTarget const& target, Digests const& digests);

}  // namespace rankslice
