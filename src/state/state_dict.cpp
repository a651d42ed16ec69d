#include "rankslice/state_dict.hpp"

#include "core/slice_at.hpp"

namespace rankslice {

Slice ShardedTensor::slice() const { return slice_at(parameter, offsets, local_shape).value_or(Slice{}); }

}  // namespace rankslice
