#pragma once

#include "model/family.hpp"

namespace rankslice {

/// Qwen3.5-MoE and Qwen3.6-MoE with grouped experts, or each expert in tensors of its own.
[[nodiscard]] Family const& qwen3_5_moe();

}  // namespace rankslice
