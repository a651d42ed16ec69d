#pragma once

#include <cstdint>

#include "rankslice/buffer.hpp"

namespace rankslice {

/// Fresh host memory for one tensor: on 2 MiB pages where it is large enough to use them and the system gives them,
/// 64-byte aligned otherwise. Not zeroed by us, not touched. Its pages go back when the last copy is dropped.
/// @throws std::bad_alloc
[[nodiscard]] Buffer allocate_host(std::uint64_t bytes);

}  // namespace rankslice
