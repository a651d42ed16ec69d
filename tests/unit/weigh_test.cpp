#include "transform/weigh.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <tuple>
#include <vector>

#include "support/naive_digest.hpp"
#include "support/vector_target.hpp"

namespace rankslice {

namespace {

using test::OnTarget;
using test::VectorTarget;
using test::word_at;

using Bytes = std::vector<std::byte>;

Bytes random_bytes(std::uint64_t count) {
  std::mt19937_64 random(count);
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// Factors that no axis has, cut as kernels want them.
struct Factors {
  explicit Factors(std::vector<std::uint32_t> numbers) : whole(std::move(numbers)) {
    for (auto const factor : whole) {
      pieces[0].push_back(static_cast<std::int16_t>(factor % 2048));
      pieces[1].push_back(static_cast<std::int16_t>(factor / 2048 % 2048));
      pieces[2].push_back(static_cast<std::int16_t>(factor / 2048 / 2048));
    }
  }
  [[nodiscard]] FactorRun run() const {
    return {.whole = whole.data(), .pieces = {pieces[0].data(), pieces[1].data(), pieces[2].data()}};
  }
  std::vector<std::uint32_t> whole;
  std::array<std::vector<std::int16_t>, 3> pieces;
};

std::vector<std::uint64_t> naive(WordLines const& lines, Bytes const& bytes, std::uint64_t skip,
                                 std::vector<std::uint32_t> const& factors) {
  std::vector<std::uint64_t> sums(lines.lines);
  for (std::uint64_t line = 0; line < lines.lines; ++line) {
    for (std::uint64_t i = 0; i < lines.count; ++i) {
      auto const word = word_at(bytes, skip + line * lines.line_stride + i * lines.word_stride, lines.word_bytes);
      sums[line] += factors[i] * (word + 1);
    }
  }
  return sums;
}

class Weigh : public testing::TestWithParam<VectorTarget> {
 protected:
  void check(WordLines lines, Bytes const& bytes, std::uint64_t skip, Factors const& factors) const {
    SCOPED_TRACE(testing::Message() << lines.lines << " lines of " << lines.count << " words of " << lines.word_bytes
                                    << " bytes by " << lines.word_stride << " at " << skip);
    lines.data = bytes.data() + skip;
    std::vector<std::uint64_t> sums(lines.lines, 99);
    weigh_lines(lines, factors.run(), sums.data());
    EXPECT_EQ(sums, naive(lines, bytes, skip, factors.whole));
  }

  OnTarget const here_{GetParam()};
};

WordLines const kKinds[] = {{.word_bytes = 1, .word_stride = 1}, {.word_bytes = 2, .word_stride = 2},
                            {.word_bytes = 4, .word_stride = 4}, {.word_bytes = 4, .word_stride = 8},
                            {.word_bytes = 1, .word_stride = 3}, {.word_bytes = 2, .word_stride = 6}};

std::vector<std::uint32_t> random_factors(std::size_t count) {
  std::mt19937_64 random(count);
  std::vector<std::uint32_t> factors(count);
  for (auto& factor : factors) factor = static_cast<std::uint32_t>(random());
  return factors;
}

TEST_P(Weigh, LinesOfAnyLengthAtAnyAddress) {
  Factors const factors(random_factors(1500));
  auto const bytes = random_bytes(3 * 1500 * 8 + 100);
  for (auto lines : kKinds) {
    for (std::uint64_t count = 0; count <= 1500; count += count < 140 ? 1 : 97) {
      lines.count = count;
      lines.lines = count % 4;
      lines.line_stride = count * lines.word_stride + count % 5;
      check(lines, bytes, count % 9, factors);
    }
  }
}

// Sums of products of 16 bits have room for so many, and no more.
TEST_P(Weigh, TheLargestWordsAndFactorsThereCanBe) {
  constexpr std::uint64_t kCount = 5000;
  Factors const largest(std::vector<std::uint32_t>(kCount, UINT32_MAX));
  for (auto const byte : {0xFF, 0x7F, 0x80, 0x00}) {
    Bytes const bytes(kCount * 8, static_cast<std::byte>(byte));
    for (auto lines : kKinds) {
      lines.count = kCount;
      lines.lines = 1;
      check(lines, bytes, 0, largest);
    }
  }
}

TEST_P(Weigh, FactorsOfAnAxisFromAnyPositionOn) {
  for (auto const first : {std::uint64_t{0}, std::uint64_t{77}, (std::uint64_t{1} << 31) - 300}) {
    for (auto const axis : {DigestAxis::row, DigestAxis::column}) {
      FactorTable const table(axis, first, 300);
      ASSERT_EQ(table.size(), 300U);
      auto const run = table.from(3);
      for (std::uint64_t i = 0; i < 297; ++i) {
        auto const expected = axis == DigestAxis::row ? test::fr_of(first + 3 + i) : test::fc_of(first + 3 + i);
        ASSERT_EQ(run.whole[i], expected) << first + 3 + i;
        ASSERT_EQ(
            run.pieces[0][i] + run.pieces[1][i] * std::int64_t{2048} + run.pieces[2][i] * std::int64_t{2048 * 2048},
            expected);
        for (auto const* const piece : run.pieces) ASSERT_TRUE(piece[i] >= 0 && piece[i] < 2048);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Weigh, testing::ValuesIn(test::vector_targets()));

}  // namespace

}  // namespace rankslice
