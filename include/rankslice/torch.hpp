#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "rankslice/state_dict.hpp"

namespace rankslice {

/// The local tensor as an `at::Tensor` over the same memory, which lives as long as either. No copy.
/// @throws PlanError for element types that LibTorch does not know; DeviceError for memory of a GPU in a program
/// without LibTorch's CUDA libraries.
[[nodiscard]] at::Tensor as_tensor(ShardedTensor const& tensor);

/// FQN -> local tensor, over the same memory as `state`.
[[nodiscard]] std::map<std::string, at::Tensor> as_tensors(StateDict const& state);

}  // namespace rankslice
