#include "device/cuda_check.hpp"

#include <fmt/format.h>

#include "rankslice/error.hpp"

namespace rankslice {

void check_cuda(cudaError_t code, std::string_view device, std::source_location at) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();  // errors of calls stay until they are asked for
  throw DeviceError(fmt::format("{}: {} ({}; {}, line {})", device, cudaGetErrorString(code), cudaGetErrorName(code),
                                at.function_name(), at.line()));
}

}  // namespace rankslice
