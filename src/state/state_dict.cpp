#include "rankslice/state_dict.hpp"

namespace rankslice {

Range ShardedTensor::part() const {
  if (!parameter.stacked_experts) return {0, parameter.part_count()};
  return {offsets[0], offsets[0] + local_shape[0]};
}

}  // namespace rankslice
