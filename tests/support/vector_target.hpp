#pragma once

#include <hwy/targets.h>

#include <cstdint>
#include <ostream>
#include <vector>

namespace rankslice::test {

/// One of the instruction sets that vector code is compiled for.
struct VectorTarget {
  std::int64_t bit = 0;
};

inline void PrintTo(VectorTarget const& target, std::ostream* out) { *out << hwy::TargetName(target.bit); }

/// All that this machine has.
inline std::vector<VectorTarget> vector_targets() {
  std::vector<VectorTarget> targets;
  for (auto const bit : hwy::SupportedAndGeneratedTargets()) targets.push_back({bit});
  return targets;
}

/// While this lives, kernels run on that instruction set and no other.
class OnTarget {
 public:
  explicit OnTarget(VectorTarget target) { hwy::SetSupportedTargetsForTest(target.bit); }
  ~OnTarget() { hwy::SetSupportedTargetsForTest(0); }
  OnTarget(OnTarget const&) = delete;
  OnTarget& operator=(OnTarget const&) = delete;
};

}  // namespace rankslice::test
