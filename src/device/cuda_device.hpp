#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <source_location>
#include <string>

#include "rankslice/device.hpp"

#include "device/cuda_check.hpp"
#include "device/cuda_current.hpp"

namespace rankslice {

/// A GPU with a stream of its own; everything is done on that, in order.
class CudaDevice final : public Device {
 public:
  /// @throws DeviceError
  CudaDevice(int index, std::chrono::milliseconds timeout);
  ~CudaDevice() override;

  [[nodiscard]] std::string_view kind() const override { return "cuda"; }
  [[nodiscard]] int index() const override { return index_; }
  [[nodiscard]] std::string const& name() const override { return name_; }
  [[nodiscard]] std::shared_ptr<std::byte> allocate(std::uint64_t bytes) override;
  [[nodiscard]] std::uint64_t peak_bytes() const override { return use_->peak; }
  [[nodiscard]] std::span<std::byte> staging(std::uint64_t bytes) override;
  void upload(std::span<std::byte const> staged, std::byte* to) override;
  void upload_transposed(std::byte const* staged, std::uint64_t rows, std::uint64_t columns, std::uint64_t stride,
                         std::uint64_t element_bytes, std::byte* to, std::uint64_t to_stride) override;
  void download(std::byte const* from, std::span<std::byte> to) override;
  void digest(std::span<DigestBox const> boxes, std::span<std::uint64_t> sums) override;
  void finish() override;

 private:
  /// Bytes of device memory, counted by whoever releases them.
  struct Use {
    std::atomic<std::uint64_t> now = 0, peak = 0;
  };
  /// One of the two blocks: where the host writes, and where that lies on the device before it is transposed.
  struct Block {
    UniquePinned pinned;
    std::uint64_t pinned_bytes = 0;
    std::shared_ptr<std::byte> on_device;
    std::uint64_t device_bytes = 0;
    UniqueCudaEvent done;
  };

  void check(cudaError_t code, std::source_location at = std::source_location::current()) const {
    check_cuda(code, name_, at);
  }
  /// The runtime keeps the current device for each thread.
  struct Here : CurrentGpu {
    explicit Here(CudaDevice const& device) : CurrentGpu(device.index_) { device.check(error()); }
  };

  void wait();
  template <typename Query>
  void wait_for(Query const& query);

  int index_;
  std::chrono::milliseconds timeout_;
  std::string name_;
  std::shared_ptr<Use> use_ = std::make_shared<Use>();
  UniqueCudaStream stream_;
  std::array<Block, 2> blocks_;
  std::size_t current_ = 0;
  std::shared_ptr<std::byte> sums_;  ///< Of digests, on the device.
  std::uint64_t sums_bytes_ = 0;
};

}  // namespace rankslice
