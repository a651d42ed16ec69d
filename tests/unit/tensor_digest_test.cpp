#include "transform/tensor_digest.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstring>
#include <numeric>
#include <random>
#include <tuple>

#include "rankslice/digest.hpp"
#include "rankslice/error.hpp"

#include "support/naive_digest.hpp"

namespace rankslice {

namespace {

using test::a_of;
using test::fc_of;
using test::fr_of;
using test::naive_digest;
using test::word_at;
using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::IsEmpty;

using Bytes = std::vector<std::byte>;
using Numbers = std::vector<std::uint64_t>;

// ---- tools ----

template <typename Element>
Bytes bytes_of(std::vector<Element> const& elements) {
  Bytes bytes(elements.size() * sizeof(Element));
  std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

Numbers digest_of(DType dtype, Shape const& shape, Bytes const& bytes) {
  Numbers d(TensorDigest::entries(dtype, shape));
  TensorDigest(dtype, shape).add(0, bytes, d);
  return d;
}

std::uint64_t sum(Numbers const& d) { return std::accumulate(d.begin(), d.end(), std::uint64_t{0}); }

Bytes random_bytes(std::uint64_t count, std::mt19937_64& random) {
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

template <typename Element>
std::vector<Element> counted(std::size_t count) {
  std::vector<Element> elements(count);
  std::iota(elements.begin(), elements.end(), Element{0});
  return elements;
}

/// Call step(begin, end) for a random partition of [0, total) into runs, in random order.
template <typename Step>
void for_random_runs(std::uint64_t total, std::mt19937_64& random, Step const& step) {
  std::vector<std::uint64_t> cuts{0, total};
  for (auto count = random() % 12; count > 0; --count) cuts.push_back(random() % (total + 1));
  std::ranges::sort(cuts);
  std::vector<std::size_t> order(cuts.size() - 1);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::shuffle(order, random);
  for (auto const i : order) step(cuts[i], cuts[i + 1]);
}

/// A copy at an odd address, as a file's header may leave its data.
class Misaligned {
 public:
  Misaligned(Bytes const& bytes, std::uint64_t begin, std::uint64_t end) : memory_(1) {
    memory_.insert(memory_.end(), bytes.begin() + std::ptrdiff_t(begin), bytes.begin() + std::ptrdiff_t(end));
  }
  [[nodiscard]] std::span<std::byte const> span() const { return std::span(memory_).subspan(1); }

 private:
  Bytes memory_;
};

// ---- the vectors of the specification ----

TEST(DigestVectors, U16OfRank3) {
  auto const d = digest_of(DType::U16, {2, 3, 4}, bytes_of(counted<std::uint16_t>(24)));
  EXPECT_THAT(d, ElementsAre(0xe4954f3df8a62cf6, 0x176073883b01c422));
  EXPECT_EQ(sum(d), 0xfbf5c2c633a7f118);
}

TEST(DigestVectors, U16OfRank4) {
  auto const d = digest_of(DType::U16, {2, 3, 2, 2}, bytes_of(counted<std::uint16_t>(24)));
  EXPECT_THAT(d, ElementsAre(0x81e282a194f77a48, 0x191707f14c1964f8));
  EXPECT_EQ(sum(d), 0x9af98a92e110df40);
}

TEST(DigestVectors, ZerosHaveWeight) {
  auto const d = digest_of(DType::U8, {4, 2, 8}, Bytes(64));
  EXPECT_THAT(d, ElementsAre(0xf08921de38c612a0, 0x832029fe1cd5a260, 0x879dc1aec9e216e0, 0xd582d75cb0dd7f20));
  EXPECT_EQ(sum(d), 0xd0c9e4e7d05b4b00);
}

TEST(DigestVectors, F32OfRank1) {
  EXPECT_THAT(digest_of(DType::F32, {3}, bytes_of<float>({1.0F, -2.0F, 0.5F})), ElementsAre(0x38dea0e61b3e2d5b));
}

TEST(DigestVectors, I64OfRank2) {
  auto const bytes = bytes_of<std::int64_t>({1, -1, std::int64_t{1} << 40, 0});
  EXPECT_THAT(digest_of(DType::I64, {2, 2}, bytes), ElementsAre(0x5b09870fee63297d));
}

TEST(DigestVectors, F64Scalar) {
  EXPECT_THAT(digest_of(DType::F64, {}, bytes_of<double>({1.5})), ElementsAre(0x12e7a33a84fac494));
}

TEST(DigestVectors, NothingIsZero) {
  EXPECT_THAT(digest_of(DType::BF16, {0}, {}), ElementsAre(0));
  EXPECT_THAT(digest_of(DType::F32, {7, 0}, {}), ElementsAre(0));
  EXPECT_THAT(digest_of(DType::U8, {2, 0, 3}, {}), IsEmpty());
  EXPECT_THAT(digest_of(DType::U8, {0, 2, 3}, {}), IsEmpty());
  EXPECT_THAT(digest_of(DType::F4, {3, 0, 2}, {}), ElementsAre(0));
}

// A header of a few bytes can say so.
TEST(DigestVectors, AxesOfATensorWithoutElementsCostNothing) {
  Shape const shape{std::uint64_t{1} << 60, 0, 1};
  EXPECT_EQ(TensorDigest::entries(DType::BF16, shape), 0U);
  DigestTable const table({{.key = "a", .shape = shape}, {.key = "b", .shape = {2, 1, 1}}});
  EXPECT_EQ(table.sum(0), 0U);
  EXPECT_EQ(table.of(1).size(), 2U);
}

TEST(DigestVectors, ExpertFactors) {
  EXPECT_EQ(expert_factor(0), 0xd3c0067c775b5e6d);
  EXPECT_EQ(expert_factor(1), 0xd5653bc81154a5fb);
}

TEST(DigestVectors, AxisFactors) {
  AxisFactors const rows(DigestAxis::row, 3);
  AxisFactors const columns(DigestAxis::column, 3);
  EXPECT_THAT((Numbers{rows.at(0), rows.at(1), rows.at(2)}), ElementsAre(0x4d2d99cf, 0xfb178619, 0xd5834d41));
  EXPECT_THAT((Numbers{columns.at(0), columns.at(1), columns.at(2)}), ElementsAre(0x08dc147d, 0xa641c7df, 0x9da97c0d));
}

// ---- against the definition ----

class DigestOf : public testing::TestWithParam<std::tuple<DType, Shape>> {
 protected:
  DType const dtype_ = std::get<0>(GetParam());
  Shape const shape_ = std::get<1>(GetParam());
  std::uint64_t const size_ = element_bytes(dtype_);
  std::mt19937_64 random_{element_count(shape_) * 8 + size_};
  Bytes const bytes_ = random_bytes(byte_size(dtype_, shape_), random_);
};

TEST_P(DigestOf, AWholeTensorIsTheDefinition) {
  EXPECT_EQ(digest_of(dtype_, shape_, bytes_), naive_digest(size_, shape_, bytes_));
}

TEST_P(DigestOf, RunsOfAnyCutAddUpToTheWhole) {
  auto const expected = naive_digest(size_, shape_, bytes_);
  TensorDigest const digest(dtype_, shape_);
  for (int trial = 0; trial < 20; ++trial) {
    Numbers d(expected.size());
    for_random_runs(element_count(shape_), random_, [&](std::uint64_t begin, std::uint64_t end) {
      digest.add(begin, Misaligned(bytes_, begin * size_, end * size_).span(), d);
    });
    ASSERT_EQ(d, expected);
  }
}

TEST_P(DigestOf, AChangedElementChangesExactlyItsEntry) {
  if (bytes_.empty()) return;
  auto const before = naive_digest(size_, shape_, bytes_);
  auto changed = bytes_;
  auto const position = random_() % bytes_.size();
  changed[position] ^= std::byte{1};
  auto const after = digest_of(dtype_, shape_, changed);
  auto const entry = position / (bytes_.size() / before.size());
  for (std::size_t e = 0; e < before.size(); ++e) EXPECT_EQ(before[e] == after[e], e != entry) << e;
}

INSTANTIATE_TEST_SUITE_P(WidthsAndShapes, DigestOf,
                         testing::Combine(testing::Values(DType::F8_E4M3, DType::BF16, DType::F32, DType::C64),
                                          testing::Values(Shape{}, Shape{1}, Shape{37}, Shape{1, 1}, Shape{7, 33},
                                                          Shape{40, 1}, Shape{3, 5, 8}, Shape{1, 2, 65}, Shape{6, 1, 4},
                                                          Shape{2, 3, 4, 17}, Shape{3, 2, 2, 3, 9}, Shape{4, 0, 3},
                                                          Shape{0})));

TEST(SubByteDigest, IsThatOfTheBytesInOneRow) {
  std::mt19937_64 random(4);
  Shape const shape{3, 4, 6};
  for (auto const dtype : {DType::F4, DType::F6_E2M3, DType::F6_E3M2}) {
    auto const bytes = random_bytes(byte_size(dtype, shape), random);
    auto const expected = naive_digest(1, {bytes.size()}, bytes);
    EXPECT_EQ(digest_of(dtype, shape, bytes), expected);
    Numbers d(1);
    for_random_runs(bytes.size(), random, [&](std::uint64_t begin, std::uint64_t end) {
      TensorDigest(dtype, shape).add(begin, Misaligned(bytes, begin, end).span(), d);
    });
    EXPECT_EQ(d, expected);
  }
}

// ---- in the native form ----

/// [E, R, C] as [E, C, R].
Bytes swap_axes(Bytes const& bytes, Shape const& shape, std::uint64_t size) {
  Bytes swapped(bytes.size());
  for (std::uint64_t e = 0; e < shape[0]; ++e) {
    for (std::uint64_t r = 0; r < shape[1]; ++r) {
      for (std::uint64_t c = 0; c < shape[2]; ++c) {
        auto const from = ((e * shape[1] + r) * shape[2] + c) * size;
        auto const to = ((e * shape[2] + c) * shape[1] + r) * size;
        std::memcpy(swapped.data() + to, bytes.data() + from, size);
      }
    }
  }
  return swapped;
}

class SwappedDigest : public testing::TestWithParam<std::tuple<DType, Shape>> {};

TEST_P(SwappedDigest, Rule62_IsThatOfTheHfForm) {
  auto const& [dtype, shape] = GetParam();
  auto const size = element_bytes(dtype);
  std::mt19937_64 random(17);
  auto const bytes = random_bytes(byte_size(dtype, shape), random);
  auto const expected = naive_digest(size, shape, bytes);
  auto const swapped = swap_axes(bytes, shape, size);
  TensorDigest const digest(dtype, shape);
  for (int trial = 0; trial < 20; ++trial) {
    Numbers d(expected.size());
    for_random_runs(element_count(shape), random, [&](std::uint64_t begin, std::uint64_t end) {
      digest.add_swapped(begin, Misaligned(swapped, begin * size, end * size).span(), d);
    });
    ASSERT_EQ(d, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(WidthsAndShapes, SwappedDigest,
                         testing::Combine(testing::Values(DType::U8, DType::F16, DType::I32, DType::F64),
                                          testing::Values(Shape{1, 1, 1}, Shape{2, 3, 4}, Shape{3, 40, 5},
                                                          Shape{2, 5, 40}, Shape{5, 1, 9}, Shape{5, 9, 1},
                                                          Shape{2, 0, 3}, Shape{1, 33, 35})));

TEST(SwappedRuns, OfUntransposedBytesGiveAnotherDigest) {
  Shape const shape{1, 4, 4};
  auto const bytes = bytes_of(counted<std::uint16_t>(16));
  Numbers d(1);
  TensorDigest(DType::U16, shape).add_swapped(0, bytes, d);
  EXPECT_NE(d, naive_digest(2, shape, bytes));
}

// ---- long axes, limits ----

TEST(LongAxes, RunsFarOutUseTheSameFactorsAsShortAxes) {
  auto const last = (std::uint64_t{1} << 31) - 3000;
  std::mt19937_64 random(5);
  auto const bytes = random_bytes(2 * 3000, random);
  auto const weighed = [&](auto const& factor) {
    std::uint64_t total = 0;
    for (std::uint64_t i = 0; i < 3000; ++i) total += factor(last + i) * (word_at(bytes, 2 * i, 2) + 1);
    return total;
  };
  Numbers row(1);
  TensorDigest(DType::BF16, {std::uint64_t{1} << 31}).add(last, bytes, row);
  EXPECT_THAT(row, ElementsAre(a_of(0) * fr_of(0) * weighed(fc_of)));

  Numbers column(1);
  TensorDigest(DType::BF16, {std::uint64_t{1} << 31, 1}).add(last, bytes, column);
  EXPECT_THAT(column, ElementsAre(a_of(0) * fc_of(0) * weighed(fr_of)));

  Numbers swapped(1);
  TensorDigest(DType::BF16, {1, std::uint64_t{1} << 31, 1}).add_swapped(last, bytes, swapped);
  EXPECT_EQ(swapped, column);
}

std::size_t heap_bytes() {
  auto const heap = ::mallinfo2();
  return heap.uordblks + heap.hblkhd;
}

TEST(Tables, AreThereForTheAxisThatIsAskedForOnlyAndNotOfAnyLength) {
  constexpr std::uint64_t kVocabulary = 250'000;
  Bytes const element(2);
  Numbers d(1);
  auto const before = heap_bytes();
  TensorDigest const digest(DType::BF16, {1, kVocabulary, kVocabulary});
  EXPECT_LT(heap_bytes(), before + kVocabulary);
  digest.add(0, element, d);
  EXPECT_LT(heap_bytes(), before + 12 * kVocabulary);
  digest.add_swapped(0, element, d);
  EXPECT_LT(heap_bytes(), before + 24 * kVocabulary);

  auto const of_others = heap_bytes();
  TensorDigest const long_rows(DType::BF16, {4 * kVocabulary});
  long_rows.add(0, element, d);
  EXPECT_LT(heap_bytes(), of_others + kVocabulary);
}

TEST(LongAxes, BeyondTwoToThe31IsAFormatError) {
  auto const most = std::uint64_t{1} << 31;
  EXPECT_NO_THROW(TensorDigest(DType::U8, {most}));
  EXPECT_THROW(TensorDigest(DType::U8, {most + 1}), FormatError);
  EXPECT_THROW(TensorDigest(DType::U8, {most + 1, 1}), FormatError);
  EXPECT_THROW(TensorDigest(DType::U8, {1, 2, most, 1}), FormatError);
  EXPECT_NO_THROW(TensorDigest(DType::F64, {most / 2}));
  EXPECT_THROW(TensorDigest(DType::F64, {most / 2 + 1}), FormatError);
  EXPECT_THROW(TensorDigest(DType::F4, {2 * most + 2}), FormatError);
  EXPECT_NO_THROW(TensorDigest(DType::U8, {0, most + 1}));
}

TEST(RunsOutsideTheTensor, AreRefusedBeforeTheyAreCounted) {
  Numbers d(2);
  TensorDigest const digest(DType::BF16, {2, 3, 4});
  Bytes const two_elements(4);
  EXPECT_NO_THROW(digest.add(22, two_elements, d));
  EXPECT_NO_THROW(digest.add(24, {}, d));
  auto const before = d;
  EXPECT_THROW(digest.add(23, two_elements, d), PlanError);
  EXPECT_THROW(digest.add_swapped(23, two_elements, d), PlanError);
  EXPECT_THROW(digest.add(UINT64_MAX, two_elements, d), PlanError);
  EXPECT_THROW(TensorDigest(DType::BF16, {2, 0, 4}).add(0, two_elements, d), PlanError);
  EXPECT_EQ(d, before);
}

TEST(InverseModulo2To64, TimesTheNumberIsOne) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 1000; ++trial) {
    auto const odd = random() | 1;
    EXPECT_EQ(odd * inverse_modulo_2_64(odd), 1U);
  }
  EXPECT_EQ(inverse_modulo_2_64(UINT64_MAX), UINT64_MAX);
}

TEST(InverseModulo2To64, FindsOneExpertsDataUnderAnothersNumber) {
  std::mt19937_64 random(2);
  auto const expert = random_bytes(2 * 3 * 4, random);
  auto both = expert;
  both.insert(both.end(), expert.begin(), expert.end());
  auto const d = digest_of(DType::BF16, {2, 3, 4}, both);
  EXPECT_NE(d[0], d[1]);
  EXPECT_EQ(d[0] * inverse_modulo_2_64(expert_factor(0)), d[1] * inverse_modulo_2_64(expert_factor(1)));
}

// ---- the table ----

HfTensor tensor_of(DType dtype, Shape shape) { return {.key = {}, .dtype = dtype, .shape = std::move(shape)}; }

TEST(DigestTableTest, HasANumberForEachExpertAndOneForOtherTensors) {
  DigestTable table({tensor_of(DType::BF16, {4, 2, 2}), tensor_of(DType::BF16, {5, 7}), tensor_of(DType::F32, {}),
                     tensor_of(DType::U8, {0, 2, 2}), tensor_of(DType::F4, {4, 2, 2}),
                     tensor_of(DType::F32, {3, 1, 2, 2})});
  EXPECT_EQ(table.tensors(), 6U);
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < table.tensors(); ++i) sizes.push_back(table.of(i).size());
  EXPECT_THAT(sizes, ElementsAre(4, 1, 1, 0, 1, 3));
  EXPECT_THAT(table.values(), ElementsAreArray(Numbers(10)));
}

TEST(DigestTableTest, TensorsShareOneArrayInOrderAndSumOverTheirOwnEntries) {
  DigestTable table({tensor_of(DType::BF16, {3, 2, 2}), tensor_of(DType::BF16, {5, 7})});
  table.of(0)[0] = UINT64_MAX;
  table.of(0)[2] = 11;
  table.of(1)[0] = 5;
  EXPECT_THAT(table.values(), ElementsAre(UINT64_MAX, 0, 11, 5));
  EXPECT_EQ(table.sum(0), 10U);
  EXPECT_EQ(std::as_const(table).of(1)[0], 5U);
  EXPECT_EQ(table.sum(1), 5U);
}

TEST(DigestTableTest, WithoutTensorsIsEmpty) {
  EXPECT_EQ(DigestTable().tensors(), 0U);
  EXPECT_EQ(DigestTable(std::vector<HfTensor>{}).tensors(), 0U);
  EXPECT_THAT(DigestTable().values(), IsEmpty());
}

}  // namespace

}  // namespace rankslice
