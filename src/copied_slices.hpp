#pragma once

#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/options.hpp"

#include "native_source.hpp"
#include "plan/plan.hpp"
#include "slice_writer.hpp"
#include "storage_reader.hpp"

namespace rankslice {

// What cannot be computed back from the values that were made of it goes home as a copy of what it was: quantised
// weights with their block scales, and what has been narrowed. All storages here are in the HF form.

/// Where a Hugging Face checkpoint has the tensors of a model, which it has under the same keys. Pure.
[[nodiscard]] Storage storage_of(Model const& model, Checkpoint const& checkpoint);

/// Every element of the slices is what converting the source, read as `how` says, again gives. Returns the digests of
/// what was read there. @throws VerifyError naming the tensor and the expert of the first that was changed
Digests require_unchanged(Model const& model, std::vector<PlannedSlice> const& slices, NativeSource& held,
                          Storage const& source, ReadOptions const& how, BlockDone const& done);

/// Copy the tensors of slices, which take whole rows, as the source has them, and with them the block scales of every
/// block whose first element is among them; sync and close the files. Returns the digests of what was copied. The
/// source is read as `how` says.
[[nodiscard]] Digests copy_slices(Model const& model, std::vector<PlannedSlice> const& slices, Storage const& source,
                                  Storage const& target, ReadOptions const& how, BlockDone const& done);

/// The digests of copies as they stand there.
[[nodiscard]] Digests digest_copies(Model const& model, std::vector<PlannedSlice> const& slices, Storage const& target,
                                    BlockDone const& done);

/// Read the copies back. @throws VerifyError naming the first tensor that is not what was copied
void check_copies(Model const& model, std::vector<PlannedSlice> const& slices, Storage const& target,
                  Digests const& copied, BlockDone const& done);

}  // namespace rankslice
