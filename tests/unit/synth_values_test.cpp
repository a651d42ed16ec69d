#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "synth/values.hpp"

// Expected numbers come from this Python, written from the definition in values.hpp:
//
//     M = (1 << 64) - 1
//     def mix(x):
//         x ^= x >> 30; x = x * 0xbf58476d1ce4e5b9 & M; x ^= x >> 27; x = x * 0x94d049bb133111eb & M; return x ^ x >>
//         31
//     def fnv(s):
//         h = 0xcbf29ce484222325
//         for c in s.encode(): h = (h ^ c) * 0x100000001b3 & M
//         return h
//     def tensor_bytes(seed, name, size, keep, base):  # BF16: 0x83ff * 0x1000100010001, 0x3b80 * 0x1000100010001
//         key = mix(fnv(name) ^ mix(seed))
//         words = [(mix(key + i * 0x9e3779b97f4a7c15 & M) & keep) + base for i in range((size + 7) // 8)]
//         return numpy.array(words, "<u8").tobytes()[:size]

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

constexpr auto kExperts = "model.language_model.layers.0.mlp.experts.down_proj";
constexpr auto kNorm = "model.language_model.layers.0.linear_attn.norm.weight";
constexpr auto kALog = "model.language_model.layers.0.linear_attn.A_log";

template <typename Element>
std::vector<Element> elements(std::uint64_t seed, std::string_view name, DType dtype, std::size_t count,
                              std::uint64_t first_byte = 0) {
  std::vector<Element> values(count);
  SyntheticValues(seed, name, dtype).fill(first_byte, std::as_writable_bytes(std::span(values)));
  return values;
}

float from_bf16(std::uint16_t bits) {
  auto const wide = std::uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

TEST(SyntheticValues, AreTheHashOfSeedNameAndIndexThatTheHeaderDefines) {
  EXPECT_THAT(elements<std::uint16_t>(0, "lm_head.weight", DType::BF16, 10),
              ElementsAre(0x3dac, 0xbb99, 0xbea0, 0x3c20, 0xbd78, 0x3c27, 0x3f75, 0x3da9, 0x3bad, 0xbe86));
  EXPECT_THAT(elements<std::uint16_t>(7, "lm_head.weight", DType::BF16, 10),
              ElementsAre(0xbcaf, 0xbc83, 0xbea8, 0xbbc2, 0xbe95, 0x3c73, 0xbd77, 0xbf3e, 0x3e49, 0xbcef));
  EXPECT_THAT(elements<std::uint16_t>(0, kExperts, DType::BF16, 10),
              ElementsAre(0x3d27, 0xbe1b, 0xbce1, 0xbc17, 0xbc08, 0x3e28, 0xbe41, 0x3f20, 0xbeba, 0x3e30));
  EXPECT_THAT(elements<std::uint32_t>(0, kNorm, DType::F32, 5),
              ElementsAre(0xbc48895a, 0x3dd8ed6d, 0xbedb2d6f, 0x3e9a798d, 0x3b8e071a));
  EXPECT_THAT(elements<std::uint32_t>(0, kALog, DType::F32, 5),
              ElementsAre(0x3fae4ea6, 0x3ff96071, 0x3fab464c, 0x3f374859, 0x3f0c50ca));
}

TEST(SyntheticValues, FarIntoATensorAreTheSameHash) {
  EXPECT_THAT(elements<std::uint16_t>(0, "lm_head.weight", DType::BF16, 4, 1 << 20),
              ElementsAre(0xbd27, 0xbce0, 0x3bc0, 0x3c01));
}

TEST(SyntheticValues, DoNotDependOnThePiecesTheyAreMadeIn) {
  constexpr std::size_t kBytes = 4096 + 6;
  std::vector<std::byte> whole(kBytes);
  SyntheticValues const values(3, kExperts, DType::BF16);
  values.fill(0, whole);
  for (std::size_t const piece : {8U, 24U, 1000U, 4096U}) {
    std::vector<std::byte> pieced(kBytes);
    for (std::size_t first = 0; first < kBytes; first += piece) {
      values.fill(first, std::span(pieced).subspan(first, std::min(piece, kBytes - first)));
    }
    EXPECT_EQ(pieced, whole) << "in pieces of " << piece;
  }
}

TEST(SyntheticValues, AreFiniteBelowOneAndOfBothSigns) {
  auto const bits = elements<std::uint16_t>(1, kExperts, DType::BF16, 1 << 16);
  std::size_t negative = 0, usual = 0;
  for (auto const bit : bits) {
    auto const value = from_bf16(bit);
    ASSERT_GE(std::abs(value), 0x1p-8F);
    ASSERT_LT(std::abs(value), 1.0F);
    if (value < 0) ++negative;
    if (std::abs(value) >= 0x1p-6F) ++usual;
  }
  EXPECT_NEAR(static_cast<double>(negative), 0x1p15, 0x1p10);
  EXPECT_NEAR(static_cast<double>(usual), 0.75 * 0x1p16, 0x1p10);
  for (auto const value : elements<float>(1, kNorm, DType::F32, 1 << 12)) {
    ASSERT_GE(std::abs(value), 0x1p-8F);
    ASSERT_LT(std::abs(value), 1.0F);
  }
}

TEST(SyntheticValues, OfALogArePositive) {
  for (auto const value : elements<float>(1, kALog, DType::F32, 1 << 12)) {
    ASSERT_GE(value, 0.5F);
    ASSERT_LT(value, 2.0F);
  }
}

constexpr auto kCodes = "model.language_model.layers.0.mlp.experts.0.down_proj.weight";
constexpr auto kScales = "model.language_model.layers.0.mlp.experts.0.down_proj.weight_scale_inv";

TEST(SyntheticValues, OfFp8AreAllCodesButTheNans) {
  std::set<std::uint8_t> codes;
  for (auto const code : elements<std::uint8_t>(1, kCodes, DType::F8_E4M3, 1 << 16)) codes.insert(code);
  EXPECT_EQ(codes.size(), 254U);
  EXPECT_FALSE(codes.contains(0x7f));
  EXPECT_FALSE(codes.contains(0xff));
}

// The bytes of the hash, with 0x7e for 0x7f and 0xfe for 0xff, of which the second piece has one each.
TEST(SyntheticValues, OfFp8AreTheHashThatTheHeaderDefines) {
  EXPECT_THAT(elements<std::uint8_t>(0, kCodes, DType::F8_E4M3, 12),
              ElementsAre(0x23, 0x15, 0xa2, 0x2a, 0x78, 0xbc, 0x79, 0x18, 0x6a, 0x74, 0xec, 0x35));
  EXPECT_THAT(elements<std::uint8_t>(0, kCodes, DType::F8_E4M3, 16, 4192),
              ElementsAreArray(
                  {0x3b, 0xd5, 0xfe, 0x99, 0x1e, 0x1d, 0x1a, 0x8b, 0x4c, 0x55, 0x03, 0x7e, 0x10, 0x15, 0x01, 0xd1}));
}

TEST(SyntheticValues, OfScalesArePositiveAndSmall) {
  EXPECT_THAT(elements<std::uint16_t>(0, kScales, DType::BF16, 6),
              ElementsAre(0x398c, 0x3a4b, 0x39b8, 0x3a0e, 0x3a3f, 0x3a65));
  EXPECT_THAT(elements<std::uint32_t>(0, kScales, DType::F32, 4),
              ElementsAre(0x3a4b8c0c, 0x3a0e7c38, 0x3a6580bf, 0x39932bd4));
  for (auto const bits : elements<std::uint16_t>(1, kScales, DType::BF16, 1 << 12)) {
    ASSERT_GE(from_bf16(bits), 0x1p-12F);
    ASSERT_LT(from_bf16(bits), 0x1p-10F);
  }
  for (auto const value : elements<float>(1, kScales, DType::F32, 1 << 12)) {
    ASSERT_GE(value, 0x1p-12F);
    ASSERT_LT(value, 0x1p-10F);
  }
}

TEST(SyntheticValues, DifferBetweenAllRowsExpertsTensorsAndSeeds) {
  constexpr std::size_t kRow = 96, kRows = 512;
  std::set<std::vector<std::uint16_t>> rows;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    for (auto const* const name : {kExperts, "mtp.layers.0.mlp.experts.down_proj", "lm_head.weight"}) {
      auto const bits = elements<std::uint16_t>(seed, name, DType::BF16, kRow * kRows);
      for (auto row = bits.begin(); row != bits.end(); row += kRow) rows.emplace(row, row + kRow);
    }
  }
  EXPECT_EQ(rows.size(), 3 * 3 * kRows);
}

TEST(SyntheticValues, ExistForTheDTypesOfTheFamiliesOnly) {
  EXPECT_THROW(SyntheticValues(0, "x", DType::F16), UsageError);
}

}  // namespace
}  // namespace rankslice
