#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "rankslice/device.hpp"

namespace rankslice {

/// to[c·to_stride + r] = from[r·columns + c], on the device. Elements of 1, 2, 4 or 8 bytes, aligned to their size.
cudaError_t launch_transpose(std::byte const* from, std::uint64_t rows, std::uint64_t columns,
                             std::uint64_t element_bytes, std::byte* to, std::uint64_t to_stride, cudaStream_t stream);

/// Add q(e) of the entries of a box to as many numbers in device memory.
cudaError_t launch_digest(DigestBox const& box, std::uint64_t* sums, cudaStream_t stream);

}  // namespace rankslice
