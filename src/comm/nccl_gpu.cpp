#include "comm/nccl_gpu.hpp"

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <nccl.h>

#include <string>

namespace rankslice {
namespace {

std::string cuda_version(int code) { return fmt::format("{}.{}", code / 1000, code % 1000 / 10); }

std::string why_no_gpu(cudaError_t error) {
  int driver = 0;
  cudaDriverGetVersion(&driver);  // 0 without a driver
  if (driver == 0) return "it has no NVIDIA driver (in a container: start it with the GPUs)";
  if (error == cudaErrorInsufficientDriver) {
    return fmt::format("its NVIDIA driver is for CUDA {}, and this program needs {}", cuda_version(driver),
                       cuda_version(CUDART_VERSION));
  }
  if (error == cudaErrorNoDevice) {
    return "no GPU is visible to it: CUDA_VISIBLE_DEVICES hides them all, or the job was given none";
  }
  return fmt::format("CUDA: {}", cudaGetErrorString(error));
}

/// As nvidia-smi writes it.
std::string uuid_text(cudaUUID_t const& uuid) {
  std::string text = "GPU-";
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

void describe_gpu(GpuCard& card, int device) {
  auto error = cudaGetDeviceCount(&card.visible_gpus);
  if (error != cudaSuccess || card.visible_gpus == 0) {
    card.visible_gpus = 0;
    card.why_none = why_no_gpu(error == cudaSuccess ? cudaErrorNoDevice : error);
    return;
  }
  if (device < 0 || device >= card.visible_gpus) {
    card.why_none = fmt::format("GPU {} was asked for, and {} are visible to it", device, card.visible_gpus);
    return;
  }
  cudaDeviceProp properties{};
  error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    card.why_none = why_no_gpu(error);
    return;
  }
  card.gpu = uuid_text(properties.uuid);
}

}  // namespace

GpuCard gpu_card(std::string const& host, NcclOptions const& options) {
  GpuCard card;
  card.host = host;
  card.built_with = NCCL_VERSION_CODE;
  card.staging_bytes = options.staging_bytes;
  card.shares_gpu = options.shared_gpus;
  ncclGetVersion(&card.nccl_version);
  describe_gpu(card, options.device);
  return card;
}

}  // namespace rankslice
