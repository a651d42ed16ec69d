#pragma once

#include "rankslice/nccl.hpp"

#include "comm/gpu_cards.hpp"

namespace rankslice {

/// What this rank says of itself and its GPU. Also where there is no GPU and no driver. Local.
[[nodiscard]] GpuCard gpu_card(std::string const& host, NcclOptions const& options);

}  // namespace rankslice
