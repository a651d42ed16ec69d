#include <fmt/format.h>

#include "rankslice/cuda.hpp"

#include "device/cuda_check.hpp"

namespace rankslice {

namespace {

std::string why_none(cudaError_t code) {
  switch (code) {
    case cudaErrorInsufficientDriver: {
      int driver = 0;
      cudaDriverGetVersion(&driver);
      if (driver == 0) return "there is no NVIDIA driver: install one, or in a container let it through (--gpus all)";
      return fmt::format("the NVIDIA driver is for CUDA {}.{}, and this program for {}.{}: update the driver",
                         driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    }
    case cudaSuccess:
    case cudaErrorNoDevice:
      return "the NVIDIA driver shows no GPU to this process: see nvidia-smi, and CUDA_VISIBLE_DEVICES if it is set";
    default:
      return fmt::format("{} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
  }
}

}  // namespace

VisibleGpus visible_gpus() {
  VisibleGpus gpus;
  auto const code = cudaGetDeviceCount(&gpus.count);
  if (code == cudaSuccess && gpus.count > 0) return gpus;
  (void)cudaGetLastError();
  return {.count = 0, .why_none = why_none(code)};
}

}  // namespace rankslice
