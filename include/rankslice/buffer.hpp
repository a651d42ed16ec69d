#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace rankslice {

/// Memory of a tensor. Copies share it; the last one releases it. On the host, large buffers stand on huge pages.
struct Buffer {
  std::shared_ptr<std::byte> data;
  std::uint64_t bytes = 0;

  [[nodiscard]] std::span<std::byte> span() const { return {data.get(), bytes}; }
};

}  // namespace rankslice
