#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/digest.hpp"

#include "parallel_reading.hpp"
#include "plan/plan.hpp"
#include "target_files.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// Called with a part of a slice and the memory that holds it, and maybe more.
using BoxStep = std::function<void(Slice const& slice, NativeBox<std::byte const> const& box)>;

/// Gives the native bytes of slices to those who write them.
class NativeSource {
 public:
  virtual ~NativeSource() = default;
  /// What will be asked for from now on, in this order: it may be read ahead. Whoever asks for something else, or says
  /// nothing, gets the same bytes. @throws IoError, FormatError; PlanError when the source lacks something of it
  virtual void expect(std::vector<PlannedSlice> const& /*slices*/) {}
  /// Call `use` for consecutive parts that make up `wanted`.
  virtual void for_each_box(PlannedSlice const& wanted, BoxStep const& use) = 0;
  /// The bytes of a slice that is contiguous where the source keeps them, or none where it does not, as of a file: in
  /// host memory, or, if they may be there, in that of a device.
  [[nodiscard]] virtual std::span<std::byte const> kept_bytes(PlannedSlice const& /*wanted*/,
                                                              bool /*on_device*/) const {
    return {};
  }
};

/// Writes native bytes to a target whose files exist at their full size.
class SliceWriter {
 public:
  /// `model` and `target` outlive the writer.
  SliceWriter(Model const& model, Storage const& target, BlockDone done);

  /// The slices of a plan from `source`. @throws IoError
  void write(std::vector<PlannedSlice> const& plan, NativeSource& source);
  /// Sync and close the files. Returns the digests of what was handed to them. @throws IoError
  [[nodiscard]] Digests finish();

 private:
  Model const& model_;
  Storage const& target_;
  TargetFiles files_;
  Transfer transfer_;
  Digests written_;
};

/// Write the slices of a plan from `source` to `target`, whose files exist at their full size; sync and close them.
/// Returns the digests of what was handed to the files.
[[nodiscard]] Digests write_slices(Model const& model, std::vector<PlannedSlice> const& plan, NativeSource& source,
                                   Storage const& target, BlockDone const& done);

/// Read the written slices back, as `reading` says. @throws VerifyError naming the first tensor that is not what was
/// written.
void check_read_back(Model const& model, std::vector<PlannedSlice> const& plan, Storage const& target,
                     Digests const& written, PieceReading const& reading);

}  // namespace rankslice
