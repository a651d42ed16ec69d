#pragma once

#include "model/family.hpp"

namespace rankslice {

/// Qwen3-Next, a text model like Qwen3-MoE with a shared expert, linear attention and an MTP.
[[nodiscard]] Family const& qwen3_next();

}  // namespace rankslice
