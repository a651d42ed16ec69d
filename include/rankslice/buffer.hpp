#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "rankslice/error.hpp"

namespace rankslice {

class Device;

/// Memory of a tensor. Copies share it; the last one releases it. On the host, large buffers stand on huge pages.
struct Buffer {
  std::shared_ptr<std::byte> data;
  std::uint64_t bytes = 0;
  std::shared_ptr<Device> device{};  ///< Whose memory it is; null: the host's.

  /// Of host memory. @throws DeviceError for a device's, which only that reads and writes.
  [[nodiscard]] std::span<std::byte> span() const {
    if (device) throw DeviceError("memory of a device was used as the host's");
    return {data.get(), bytes};
  }
};

}  // namespace rankslice
