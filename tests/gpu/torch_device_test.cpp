#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "rankslice/torch.hpp"

namespace {

using rankslice::Buffer;
using rankslice::DType;
using rankslice::ShardedTensor;

/// All 65536 bit patterns of a 16-bit type, among them every NaN payload, as a tensor of shape [256, 256].
ShardedTensor every_bf16() {
  auto const values = std::make_shared<std::vector<std::uint16_t>>(65536);
  std::iota(values->begin(), values->end(), std::uint16_t{0});
  ShardedTensor tensor;
  tensor.parameter.fqn = "every_bf16";
  tensor.parameter.dtype = DType::BF16;
  tensor.local_shape = {256, 256};
  tensor.data = Buffer{{values, reinterpret_cast<std::byte*>(values->data())}, values->size() * sizeof(std::uint16_t)};
  return tensor;
}

TEST(Device, ATensorGoesUpAndComesBackBitForBit) {
  auto const source = every_bf16();
  auto const host = rankslice::as_tensor(source);

  auto const device = host.to(at::kCUDA);
  ASSERT_TRUE(device.is_cuda());
  auto const back = device.to(at::kCPU);

  ASSERT_NE(back.data_ptr(), host.data_ptr());
  ASSERT_EQ(back.nbytes(), source.data.bytes);
  EXPECT_EQ(std::memcmp(back.data_ptr(), source.data.data.get(), source.data.bytes), 0);
}

/// Shows that the bytes really lay on the device and not in a host copy: work done there is seen in what comes back.
TEST(Device, WorkDoneOnTheDeviceIsSeenInWhatComesBack) {
  auto const host = rankslice::as_tensor(every_bf16());

  auto const back = host.to(at::kCUDA).transpose(0, 1).contiguous().to(at::kCPU);

  auto const* const bits = static_cast<std::uint16_t const*>(back.data_ptr());
  for (std::size_t row = 0; row < 256; ++row) {
    for (std::size_t column = 0; column < 256; ++column) {
      ASSERT_EQ(bits[row * 256 + column], column * 256 + row) << "at " << row << ", " << column;
    }
  }
}

}  // namespace
