#include "device/cuda_device.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/cuda.hpp"
#include "rankslice/error.hpp"

#include "device/cuda_kernels.hpp"
#include "device/cuda_wait.hpp"

namespace rankslice {

namespace {

std::string describe(int index) {
  cudaDeviceProp properties{};
  auto const plain = fmt::format("cuda:{}", index);
  check_cuda(cudaGetDeviceProperties(&properties, index), plain);
  return fmt::format("{} ({})", plain, properties.name);
}

}  // namespace

CudaDevice::CudaDevice(int index, std::chrono::milliseconds timeout)
    : index_(index), timeout_(timeout), name_(describe(index)) {
  Here const here(*this);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  for (auto& block : blocks_) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    block.done.reset(event);
  }
}

/// Memory that work on the stream still uses must not go before that has ended.
CudaDevice::~CudaDevice() {
  CurrentGpu const here(index_);
  if (here.error() != cudaSuccess) return;
  (void)wait_within(timeout_, [this] { return cudaStreamQuery(stream_.get()); });
}

std::shared_ptr<std::byte> CudaDevice::allocate(std::uint64_t bytes) {
  if (bytes == 0) return nullptr;
  Here const here(*this);
  void* memory = nullptr;
  auto const code = cudaMalloc(&memory, bytes);
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total));
    throw DeviceError(fmt::format("{}: no memory for {} bytes: {} of {} are free, and {} are held by this rank", name_,
                                  bytes, free, total, use_->now.load()));
  }
  check(code);
  use_->now += bytes;
  use_->peak = std::max(use_->peak.load(), use_->now.load());
  return {static_cast<std::byte*>(memory), [use = use_, bytes](std::byte* data) {
            (void)cudaFree(data);
            use->now -= bytes;
          }};
}

std::span<std::byte> CudaDevice::staging(std::uint64_t bytes) {
  Here const here(*this);
  current_ = 1 - current_;
  auto& block = blocks_[current_];
  wait_for([&] { return cudaEventQuery(block.done.get()); });
  if (block.pinned_bytes < bytes) {
    block.pinned.reset();
    block.pinned_bytes = 0;
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault));
    block.pinned.reset(memory);
    block.pinned_bytes = bytes;
  }
  return {static_cast<std::byte*>(block.pinned.get()), bytes};
}

void CudaDevice::upload(std::span<std::byte const> staged, std::byte* to) {
  Here const here(*this);
  check(cudaMemcpyAsync(to, staged.data(), staged.size(), cudaMemcpyHostToDevice, stream_.get()));
  check(cudaEventRecord(blocks_[current_].done.get(), stream_.get()));
}

void CudaDevice::upload_transposed(std::byte const* staged, std::uint64_t rows, std::uint64_t columns,
                                   std::uint64_t stride, std::uint64_t element_bytes, std::byte* to,
                                   std::uint64_t to_stride) {
  if (rows == 0 || columns == 0) return;
  Here const here(*this);
  auto& block = blocks_[current_];
  auto const width = columns * element_bytes;
  if (block.device_bytes < rows * width) {
    block.on_device.reset();
    block.on_device = allocate(rows * width);
    block.device_bytes = rows * width;
  }
  check(cudaMemcpy2DAsync(block.on_device.get(), width, staged, stride * element_bytes, width, rows,
                          cudaMemcpyHostToDevice, stream_.get()));
  check(launch_transpose(block.on_device.get(), rows, columns, element_bytes, to, to_stride, stream_.get()));
  check(cudaEventRecord(block.done.get(), stream_.get()));
}

void CudaDevice::download(std::byte const* from, std::span<std::byte> to) {
  Here const here(*this);
  check(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_.get()));
  wait();
}

void CudaDevice::digest(std::span<DigestBox const> boxes, std::span<std::uint64_t> sums) {
  if (sums.empty()) return;
  Here const here(*this);
  if (sums_bytes_ < sums.size_bytes()) {
    sums_.reset();
    sums_bytes_ = 0;
    sums_ = allocate(sums.size_bytes());
    sums_bytes_ = sums.size_bytes();
  }
  auto* const numbers = reinterpret_cast<std::uint64_t*>(sums_.get());
  check(cudaMemsetAsync(numbers, 0, sums.size_bytes(), stream_.get()));
  std::uint64_t entry = 0;
  for (auto const& box : boxes) {
    check(launch_digest(box, numbers + entry, stream_.get()));
    entry += box.entries;
  }
  check(cudaMemcpyAsync(sums.data(), numbers, sums.size_bytes(), cudaMemcpyDeviceToHost, stream_.get()));
  wait();
}

void CudaDevice::finish() {
  Here const here(*this);
  wait();
}

void CudaDevice::wait() {
  wait_for([this] { return cudaStreamQuery(stream_.get()); });
}

template <typename Query>
void CudaDevice::wait_for(Query const& query) {
  auto const answer = wait_within(timeout_, query);
  if (answer != cudaErrorNotReady) return check(answer);
  throw DeviceError(fmt::format("{}: what it was given to do was not done within {:.1f} s", name_,
                                std::chrono::duration<double>(timeout_).count()));
}

std::shared_ptr<Device> open_gpu(int index, std::chrono::milliseconds timeout) {
  auto const visible = visible_gpus();
  if (index < 0 || index >= visible.count) {
    throw DeviceError(visible.count == 0
                          ? fmt::format("cuda:{}: {}", index, visible.why_none)
                          : fmt::format("cuda:{}: there are {} visible GPUs, from 0 on", index, visible.count));
  }
  return std::make_shared<CudaDevice>(index, timeout);
}

}  // namespace rankslice
