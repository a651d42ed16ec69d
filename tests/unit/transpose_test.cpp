#include "transform/transpose.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <span>
#include <tuple>
#include <vector>

#include "support/vector_target.hpp"

namespace rankslice {

namespace {

using Bytes = std::vector<std::byte>;

Bytes random_bytes(std::uint64_t count) {
  std::mt19937_64 random(count);
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// A matrix in a larger one: the output's is `skip` bytes behind the beginning of a cache line; its rows `stride`
/// elements apart.
struct Place {
  std::uint64_t skip, stride;
};

void check_transpose(std::uint64_t rows, std::uint64_t columns, std::uint64_t size, Place in, Place out) {
  SCOPED_TRACE(testing::Message() << rows << " x " << columns << " of " << size << " bytes, in at " << in.skip << " by "
                                  << in.stride << ", out at " << out.skip << " by " << out.stride);
  auto const source = random_bytes(in.skip + rows * in.stride * size);
  auto actual = random_bytes(64 + out.skip + columns * out.stride * size + 3);
  auto const box = (64 - reinterpret_cast<std::uintptr_t>(actual.data()) % 64) % 64 + out.skip;

  auto expected = actual;  // and so stays all that is outside the box
  for (std::uint64_t r = 0; r < rows; ++r) {
    for (std::uint64_t c = 0; c < columns; ++c) {
      std::memcpy(expected.data() + box + (c * out.stride + r) * size,
                  source.data() + in.skip + (r * in.stride + c) * size, size);
    }
  }

  transpose({.data = source.data() + in.skip, .rows = rows, .columns = columns, .stride = in.stride}, size,
            actual.data() + box, out.stride);
  ASSERT_TRUE(actual == expected);
}

class TransposeOf : public testing::TestWithParam<std::tuple<std::uint64_t, test::VectorTarget>> {
 protected:
  std::uint64_t const size_ = std::get<0>(GetParam());
  test::OnTarget const here_{std::get<1>(GetParam())};
};

TEST_P(TransposeOf, MatricesOfAllSmallSizes) {
  for (std::uint64_t rows = 0; rows <= 70; rows += rows < 34 ? 1 : 3) {
    for (std::uint64_t columns = 0; columns <= 70; columns += columns < 18 ? 1 : 4) {
      check_transpose(rows, columns, size_, {0, columns}, {0, rows});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(TransposeOf, MatricesInsideOthersAtAnyAddress) {
  for (std::uint64_t const rows : {1U, 7U, 16U, 63U, 64U, 65U, 130U}) {
    for (std::uint64_t const columns : {1U, 8U, 15U, 32U, 33U, 70U}) {
      for (std::uint64_t skip = 0; skip < 3; ++skip) {
        check_transpose(rows, columns, size_, {skip, columns + 5}, {2 * skip, rows + 3});
        check_transpose(rows, columns, size_, {7 * skip, 128}, {16 * skip, 256});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(TransposeOf, StripsOfAnExpert) {
  check_transpose(64, 2048, size_, {0, 2048}, {128, 1024});
  check_transpose(200, 1000, size_, {1, 1000}, {0, 512});
}

TEST_P(TransposeOf, ATransposeIsTheMatrixAgain) {
  std::uint64_t const rows = 129, columns = 257, size = size_;
  auto const matrix = random_bytes(rows * columns * size);
  Bytes once(matrix.size());
  Bytes twice(matrix.size());
  transpose({.data = matrix.data(), .rows = rows, .columns = columns, .stride = columns}, size, once.data(), rows);
  transpose({.data = once.data(), .rows = columns, .columns = rows, .stride = rows}, size, twice.data(), columns);
  EXPECT_NE(once, matrix);
  EXPECT_EQ(twice, matrix);
}

INSTANTIATE_TEST_SUITE_P(ElementBytesAndTargets, TransposeOf,
                         testing::Combine(testing::Values(1, 2, 4, 8), testing::ValuesIn(test::vector_targets())));

TEST(Transpose, MovesElementsAndNotTheirBytes) {
  std::vector<std::uint16_t> const matrix{0x0102, 0x0304, 0x0506, 0x0708, 0x090a, 0x0b0c};  // 2 x 3
  std::vector<std::uint16_t> out(6);
  transpose({.data = std::as_bytes(std::span(matrix)).data(), .rows = 2, .columns = 3, .stride = 3}, 2,
            std::as_writable_bytes(std::span(out)).data(), 2);
  EXPECT_EQ(out, (std::vector<std::uint16_t>{0x0102, 0x0708, 0x0304, 0x090a, 0x0506, 0x0b0c}));
}

}  // namespace

}  // namespace rankslice
