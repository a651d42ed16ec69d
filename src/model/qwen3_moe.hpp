#pragma once

#include "model/family.hpp"

namespace rankslice {

/// Qwen3-MoE, a text model whose releases hold each expert's matrices in tensors of their own.
[[nodiscard]] Family const& qwen3_moe();

}  // namespace rankslice
