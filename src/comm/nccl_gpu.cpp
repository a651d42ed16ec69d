#include "comm/nccl_gpu.hpp"

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <nccl.h>

#include <string>

#include "rankslice/cuda.hpp"

namespace rankslice {
namespace {

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
  auto const gpus = visible_gpus();
  card.visible_gpus = gpus.count;
  card.why_none = gpus.why_none;
  if (gpus.count == 0) return;
  if (device < 0 || device >= gpus.count) {
    card.why_none = fmt::format("GPU {} was asked for, and {} are visible to it", device, gpus.count);
    return;
  }
  cudaDeviceProp properties{};
  auto const error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    card.why_none = fmt::format("CUDA: {}", cudaGetErrorString(error));
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
