#include "support/device_bytes.hpp"

#include <algorithm>

#include "rankslice/device.hpp"

namespace rankslice::test {

namespace {

void upload_to(Device& device, std::span<std::byte const> bytes, std::byte* to) {
  auto const staged = device.staging(bytes.size());
  std::ranges::copy(bytes, staged.begin());
  device.upload(staged, to);
}

}  // namespace

std::vector<std::byte> copy_of(Buffer const& buffer) {
  std::vector<std::byte> bytes(buffer.bytes);
  if (buffer.device) {
    buffer.device->download(buffer.data.get(), bytes);
  } else {
    std::ranges::copy(buffer.span(), bytes.begin());
  }
  return bytes;
}

void fill(Buffer const& buffer, std::span<std::byte const> bytes) {
  if (buffer.device) {
    upload_to(*buffer.device, bytes, buffer.data.get());
    buffer.device->finish();
  } else {
    std::ranges::copy(bytes, buffer.span().begin());
  }
}

std::shared_ptr<std::byte> upload(Device& device, std::span<std::byte const> bytes) {
  auto memory = device.allocate(bytes.size());
  upload_to(device, bytes, memory.get());
  return memory;
}

}  // namespace rankslice::test
