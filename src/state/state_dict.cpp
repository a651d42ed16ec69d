#include "rankslice/state_dict.hpp"

namespace rankslice {

Slice ShardedTensor::slice() const {
  if (!parameter.stacked_experts) return parameter.whole();
  return {.part = {offsets[0], offsets[0] + local_shape[0]}, .rows = {offsets[1], offsets[1] + local_shape[1]}};
}

}  // namespace rankslice
