#pragma once

#include "model/family.hpp"

namespace rankslice {

/// Qwen3-VL-MoE as on the Hub and as transformers writes it.
[[nodiscard]] Family const& qwen3_vl_moe();

}  // namespace rankslice
