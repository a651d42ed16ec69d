#pragma once

#include <functional>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/digest.hpp"

#include "plan/plan.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// Gives the native bytes of parts to those who write them.
class NativeSource {
 public:
  virtual ~NativeSource() = default;
  /// Call `use(part, bytes)` for consecutive pieces of `wanted`, each of whole units and contiguous in the native form.
  virtual void for_each_piece(PlannedPart const& wanted,
                              std::function<void(Range part, std::byte const* native)> const& use) = 0;
};

/// Write the parts of a plan from `source` to `target`, whose files exist at their full size; sync and close them.
/// Returns the digests of what was handed to the files.
[[nodiscard]] Digests write_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                                  NativeSource& source, Storage const& target, BlockDone const& done);

/// Read the written parts back. @throws VerifyError naming the first tensor that is not what was written.
void check_read_back(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                     Storage const& target, Digests const& written, BlockDone const& done);

}  // namespace rankslice
