#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <set>
#include <span>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/options.hpp"

#include "plan/plan.hpp"
#include "storage_reader.hpp"
#include "target_files.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// Called with a part of a slice and the memory that holds it, and maybe more.
using BoxStep = std::function<void(Slice const& slice, NativeBox<std::byte const> const& box)>;

/// Gives the native bytes of slices to those who write them.
class NativeSource {
 public:
  virtual ~NativeSource() = default;
  /// Call `use` for consecutive parts that make up `wanted`.
  virtual void for_each_box(PlannedSlice const& wanted, BoxStep const& use) = 0;
  /// The bytes of a slice that is contiguous where the source keeps them, or none where it does not, as of a file: in
  /// host memory, or, if they may be there, in that of a device.
  [[nodiscard]] virtual std::span<std::byte const> kept_bytes(PlannedSlice const& /*wanted*/,
                                                              bool /*on_device*/) const {
    return {};
  }
};

/// Writes native bytes to a target whose files exist at their full size, and reads them back.
///
/// What is written goes to the disk window by window, while the next ones are made. Those that have got there are read
/// back meanwhile, so that few pages wait for the disk at any time, and little is left to do when all is written.
class SliceWriter {
 public:
  /// `model` and `target` outlive the writer. `done` is called after every block that was written or read back.
  SliceWriter(Model const& model, Storage const& target, BlockDone done, PageCache cache = PageCache::keep);

  /// The slices of a plan from `source`. @throws IoError
  void write(std::vector<PlannedSlice> const& plan, NativeSource& source);
  /// Data and metadata on stable storage. Returns the digests of what was handed to the files. @throws IoError
  [[nodiscard]] Digests const& sync();
  /// Then: read back what has not been read back yet, and close the files.
  /// @throws VerifyError naming the first tensor that is not what was written; IoError
  void read_back();

 private:
  /// What goes to the disk, and comes back, together.
  struct Window {
    std::vector<LocatedSlice> slices{};
    std::uint64_t bytes = 0;
    std::vector<Extent> extents{};
  };

  void write_located(LocatedSlice const& located, NativeBox<std::byte const> const& box, DigestSink const& sink);
  void close_window();
  void read_back_first();
  void require_equal() const;

  Model const& model_;
  Storage const& target_;
  PageCache cache_;
  TargetFiles files_;
  StorageReader reader_;
  Transfer transfer_;
  Digests written_, found_;
  std::set<std::uint32_t> parameters_;
  Window window_;                 // that is being filled
  std::deque<Window> under_way_;  // to the disk, the oldest first
};

}  // namespace rankslice
