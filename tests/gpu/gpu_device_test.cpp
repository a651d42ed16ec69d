#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "rankslice/cuda.hpp"
#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "support/device_bytes.hpp"
#include "support/example_parameter.hpp"
#include "transform/device_digest.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::HasSubstr;

TEST(Gpu, BytesGoUpThroughBothBlocksAndComeBack) {
  auto const device = open_gpu(0);
  constexpr std::uint64_t kPart = 5'000'001;
  auto const bytes = test::random_bytes(7 * kPart, 1);
  auto const memory = device->allocate(bytes.size());
  for (std::uint64_t begin = 0; begin < bytes.size(); begin += kPart) {
    auto const staged = device->staging(kPart);
    std::memcpy(staged.data(), bytes.data() + begin, kPart);
    device->upload(staged, memory.get() + begin);
  }
  Bytes back(bytes.size());
  device->download(memory.get(), back);
  EXPECT_TRUE(back == bytes);
}

TEST(Gpu, MatricesAreTransposedOnTheirWay) {
  auto const device = open_gpu(0);
  for (std::uint64_t const size : {1U, 2U, 4U, 8U}) {
    for (std::uint64_t const rows : {1U, 31U, 64U, 1000U}) {
      for (std::uint64_t const columns : {1U, 33U, 512U}) {
        auto const stride = columns + 5, to_stride = rows + 7;
        auto const matrix = test::random_bytes(rows * stride * size, size);
        Bytes expected(columns * to_stride * size, std::byte{0x5a});
        auto const memory = test::upload(*device, expected);
        auto const staged = device->staging(matrix.size());
        std::ranges::copy(matrix, staged.begin());
        device->upload_transposed(staged.data(), rows, columns, stride, size, memory.get(), to_stride);
        for (std::uint64_t row = 0; row < rows; ++row) {
          for (std::uint64_t column = 0; column < columns; ++column) {
            std::memcpy(expected.data() + (column * to_stride + row) * size,
                        matrix.data() + (row * stride + column) * size, size);
          }
        }
        Bytes found(expected.size());
        device->download(memory.get(), found);
        ASSERT_TRUE(found == expected) << rows << " x " << columns << " of " << size;
      }
    }
  }
}

void expect_digested(test::ExampleParameter const& example) {
  auto const device = open_gpu(0);
  auto const native = example.native_of(example.whole());
  Buffer const buffer{.data = test::upload(*device, native), .bytes = native.size(), .device = device};
  Digests digests(example.model);
  add_native_on_device(example.model, example.parameter(), example.whole(), buffer, digests);
  std::vector<std::uint64_t> expected;
  for (auto const& numbers : example.digests(example.whole()).source) {
    expected.insert(expected.end(), numbers.begin(), numbers.end());
  }
  EXPECT_TRUE(std::ranges::equal(digests.source.values(), expected)) << to_string(example.parameter().shape);
}

TEST(Gpu, DigestsAreThoseOfTheDefinition) {
  for (auto const dtype : {DType::U8, DType::BF16, DType::F32, DType::I64}) {
    expect_digested(test::swapped(dtype, {3, 300, 270}));
    expect_digested(test::stacked_as_is(dtype, {5, 257, 64}));
    expect_digested(test::split(dtype, 3, 2, {40, 70}));
    expect_digested(test::dense(dtype, {1000, 7}));
    expect_digested(test::dense(dtype, {9, 1, 4}));
  }
}

TEST(Gpu, MemoryIsCountedAndItsLackIsAnErrorThatNamesTheGpu) {
  auto const device = open_gpu(0);
  auto const before = device->peak_bytes();
  auto memory = device->allocate(3_MiB);
  memory.reset();
  EXPECT_EQ(device->peak_bytes(), before + 3_MiB);
  try {
    (void)device->allocate(std::uint64_t{1} << 50);
    ADD_FAILURE() << "no error";
  } catch (DeviceError const& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("cuda:0"), HasSubstr("are free")));
  }
  EXPECT_NO_THROW(device->finish()) << "the error does not stay behind";
}

TEST(Gpu, OneThatIsNotThereIsRefused) { EXPECT_THROW((void)open_gpu(visible_gpus().count), DeviceError); }

}  // namespace
}  // namespace rankslice
