#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "rankslice/buffer.hpp"

namespace rankslice::test {

/// The bytes of a buffer, wherever they are.
[[nodiscard]] std::vector<std::byte> copy_of(Buffer const& buffer);
/// … and other ones for it, as many.
void fill(Buffer const& buffer, std::span<std::byte const> bytes);

/// Fresh memory of a device with these bytes.
[[nodiscard]] std::shared_ptr<std::byte> upload(Device& device, std::span<std::byte const> bytes);

}  // namespace rankslice::test
