#include "verify/compare.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "support/example_parameter.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr auto kExperts = "model.language_model.layers.12.mlp.experts.down_proj";

/// A dense matrix, stacked experts [4, 2, 3] and a dense tensor of rank 3 that has a number for each of its 5 entries.
Model three_tensors() {
  return {
      .tensors = {{.key = "dense", .shape = {6, 2}, .parameter = 0},
                  {.key = kExperts, .shape = {4, 2, 3}, .parameter = 1, .experts = {0, 4}, .columns = {0, 2}},
                  {.key = "conv", .shape = {5, 1, 4}, .parameter = 2}},
      .parameters = {
          {.fqn = "dense", .shape = {6, 2}, .tensors = {0}},
          {.fqn = "experts", .shape = {4, 3, 2}, .layout = Layout::swapped, .stacked_experts = true, .tensors = {1}},
          {.fqn = "conv", .shape = {5, 1, 4}, .tensors = {2}}}};
}

constexpr std::size_t kDense = 0, kStacked = 1, kConv = 2;

/// The digests of random values of all three.
DigestTable some_table() {
  auto const model = three_tensors();
  DigestTable table(model.tensors);
  for (std::size_t i = 0; i < 3; ++i) {
    auto const& shape = model.tensors[i].shape;
    std::ranges::copy(test::naive_digest(2, shape, test::random_bytes(2 * element_count(shape), i)),
                      table.of(i).begin());
  }
  return table;
}

std::vector<Mismatch> compare(DigestTable const& expected, DigestTable const& found, int rank = -1) {
  return differences(three_tensors(), NamedTable{"read", expected}, {"held", found}, rank);
}

TEST(Differences, EqualTablesHaveNone) { EXPECT_THAT(compare(some_table(), some_table(), 3), IsEmpty()); }

TEST(Differences, NameLayerExpertRankAndBothDigests) {
  auto expected = some_table();
  auto found = expected;
  expected.of(kStacked)[2] = 0x00000000deadbeef;
  found.of(kStacked)[2] = 0xfeedfacecafef00d;
  auto const mismatches = compare(expected, found, 7);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_EQ(mismatches[0].tensor, kExperts);
  EXPECT_EQ(mismatches[0].expert, 2);
  EXPECT_EQ(mismatches[0].rank, 7);
  EXPECT_EQ(mismatches[0].what,
            "rank 7: layer 12, expert 2 of model.language_model.layers.12.mlp.experts.down_proj: read digest "
            "00000000deadbeef, held feedfacecafef00d");
}

TEST(Differences, OfSumsOverAllRanksNameNoRank) {
  auto found = some_table();
  found.of(kDense)[0] += 1;
  auto const mismatches = compare(some_table(), found);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_EQ(mismatches[0].rank, -1);
  EXPECT_THAT(mismatches[0].what, AllOf(testing::StartsWith("dense: read digest"), Not(HasSubstr("rank"))));
}

TEST(Differences, EveryExpertThatDiffersIsNamed) {
  auto found = some_table();
  for (std::size_t const e : {0U, 3U}) found.of(kStacked)[e] ^= 0x100;
  auto const mismatches = compare(some_table(), found);
  ASSERT_EQ(mismatches.size(), 2U);
  EXPECT_EQ(mismatches[0].expert, 0);
  EXPECT_EQ(mismatches[1].expert, 3);
}

TEST(Differences, ADenseTensorIsNamedOnceHoweverManyOfItsEntriesDiffer) {
  auto found = some_table();
  for (auto& entry : found.of(kConv)) entry += 2;
  auto const mismatches = compare(some_table(), found);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_EQ(mismatches[0].tensor, "conv");
  EXPECT_EQ(mismatches[0].expert, -1);
}

TEST(Differences, AKeyWithoutALayerIsNamedWithItsExpert) {
  auto model = three_tensors();
  model.tensors[kStacked].key = "experts";
  auto found = some_table();
  found.of(kStacked)[1] += 2;
  auto const expected = some_table();
  auto const mismatches = differences(model, NamedTable{"read", expected}, {"held", found}, -1);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_THAT(mismatches[0].what, HasSubstr("expert 1 of experts: read digest"));
}

/// Digests of stacked experts whose values are those of these experts of the original.
DigestTable with_experts_from(std::vector<std::size_t> const& owners) {
  auto table = some_table();
  Shape const shape = three_tensors().tensors[kStacked].shape;
  auto const bytes = test::random_bytes(2 * element_count(shape), kStacked);
  test::Bytes moved;
  for (auto const owner : owners) {
    auto const begin = bytes.begin() + std::ptrdiff_t(owner * 12);
    moved.insert(moved.end(), begin, begin + 12);
  }
  std::ranges::copy(test::naive_digest(2, shape, moved), table.of(kStacked).begin());
  return table;
}

TEST(Differences, ASwappedExpertIsRecognised) {
  auto const mismatches = compare(some_table(), with_experts_from({0, 3, 2, 1}));
  ASSERT_EQ(mismatches.size(), 2U);
  EXPECT_THAT(mismatches[0].what, AllOf(HasSubstr("expert 1 of"), HasSubstr("(holds the values of expert 3)")));
  EXPECT_THAT(mismatches[1].what, AllOf(HasSubstr("expert 3 of"), HasSubstr("(holds the values of expert 1)")));
}

TEST(Differences, AnExpertWithValuesOfNoOtherIsNotSaidToHoldThem) {
  auto found = some_table();
  found.of(kStacked)[1] += 4;
  EXPECT_THAT(compare(some_table(), found)[0].what, Not(HasSubstr("holds the values")));
}

// Rank-local tables have 0 for the experts of other ranks; a lost expert holds nobody's values.
TEST(Differences, AnExpertThatIsNotThereIsNotSaidToHoldTheValuesOfAnotherThatIsNotThere) {
  auto expected = some_table();
  expected.of(kStacked)[0] = 0;
  auto found = expected;
  found.of(kStacked)[2] = 0;
  auto const mismatches = compare(expected, found);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_THAT(mismatches[0].what, AllOf(HasSubstr("held 0000000000000000"), Not(HasSubstr("holds the values"))));
}

TEST(Differences, OfConvertedValuesAreFoundBesideThoseOfTheSource) {
  auto const table = some_table();
  Digests expected(three_tensors());
  expected.source = table;
  expected.stored = table;
  auto found = expected;
  found.stored.of(kDense)[0] += 6;
  auto const mismatches =
      differences(three_tensors(), NamedDigests{"store", expected}, NamedDigests{"read", found}, -1);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_EQ(mismatches[0].tensor, "dense");
  EXPECT_THAT(mismatches[0].what, HasSubstr("store digest"));
}

TEST(Differences, OfValuesThatOneOfTheTwoDoesNotKnowAreNone) {
  Digests expected(three_tensors());
  expected.source = some_table();
  expected.without_values = true;
  auto found = expected;
  found.without_values = false;
  found.stored.of(kDense)[0] += 6;
  EXPECT_THAT(differences(three_tensors(), NamedDigests{"manifest", expected}, NamedDigests{"read", found}, -1),
              IsEmpty());
  found.source.of(kDense)[0] += 1;
  EXPECT_EQ(differences(three_tensors(), NamedDigests{"manifest", expected}, NamedDigests{"read", found}, -1).size(),
            1U);
}

// ---- split experts ----

constexpr std::size_t kSplitExperts = 4;

/// Gate and up of four experts of a layer of MTP, under the names that they have there.
test::ExampleParameter split_experts() {
  auto example = test::split(DType::BF16, kSplitExperts, 2, {3, 5});
  for (std::size_t i = 0; i < example.model.tensors.size(); ++i) {
    example.model.tensors[i].key =
        "mtp.layers.0.mlp.experts." + std::to_string(i / 2) + (i % 2 == 0 ? ".gate_proj.weight" : ".up_proj.weight");
  }
  return example;
}

/// The digests of such experts whose matrices are these of the original.
DigestTable with_matrices(std::vector<std::size_t> const& owners) {
  auto const example = split_experts();
  DigestTable table(example.model.tensors);
  for (std::size_t i = 0; i < owners.size(); ++i) {
    table.of(i)[0] = test::naive_digest(2, {3, 5}, example.hf[owners[i]]).front();
  }
  return table;
}

std::vector<Mismatch> compare_split(std::vector<std::size_t> const& owners, int rank = -1) {
  auto const expected = with_matrices({0, 1, 2, 3, 4, 5, 6, 7});
  auto const found = with_matrices(owners);
  return differences(split_experts().model, NamedTable{"read", expected}, {"held", found}, rank);
}

TEST(DifferencesOfSplitExperts, OfEqualTablesThereAreNone) {
  EXPECT_THAT(compare_split({0, 1, 2, 3, 4, 5, 6, 7}, 3), IsEmpty());
}

TEST(DifferencesOfSplitExperts, NameLayerExpertAndItsOwnKey) {
  auto const expected = with_matrices({0, 1, 2, 3, 4, 5, 6, 7});
  auto found = expected;
  found.of(5)[0] = 0x00000000deadbeef;
  auto const mismatches = differences(split_experts().model, NamedTable{"read", expected}, {"held", found}, 2);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_EQ(mismatches[0].tensor, "mtp.layers.0.mlp.experts.2.up_proj.weight");
  EXPECT_EQ(mismatches[0].expert, 2);
  EXPECT_EQ(mismatches[0].rank, 2);
  EXPECT_THAT(mismatches[0].what,
              AllOf(testing::StartsWith("rank 2: layer 0, expert 2 of mtp.layers.0.mlp.experts.2.up_proj.weight: read"),
                    testing::EndsWith("held 00000000deadbeef")));
}

TEST(DifferencesOfSplitExperts, ThatChangedPlacesAreRecognised) {
  auto const mismatches = compare_split({0, 1, 6, 7, 4, 5, 2, 3});
  ASSERT_EQ(mismatches.size(), 4U);
  for (auto const i : {0U, 1U}) {
    EXPECT_EQ(mismatches[i].expert, 1);
    EXPECT_THAT(mismatches[i].what, HasSubstr("(holds the values of expert 3)"));
    EXPECT_EQ(mismatches[2 + i].expert, 3);
    EXPECT_THAT(mismatches[2 + i].what, HasSubstr("(holds the values of expert 1)"));
  }
}

TEST(DifferencesOfSplitExperts, OfGateAndUpThatChangedPlacesNameEachOther) {
  auto const mismatches = compare_split({0, 1, 3, 2, 4, 5, 6, 7});
  ASSERT_EQ(mismatches.size(), 2U);
  for (auto const& mismatch : mismatches) EXPECT_EQ(mismatch.expert, 1);
  EXPECT_THAT(mismatches[0].what, HasSubstr("(holds the values of mtp.layers.0.mlp.experts.1.up_proj.weight)"));
  EXPECT_THAT(mismatches[1].what, HasSubstr("(holds the values of mtp.layers.0.mlp.experts.1.gate_proj.weight)"));
}

// The gate of expert 0 has the same values as the up matrix of expert 1, which the up matrix of expert 2 holds.
TEST(DifferencesOfSplitExperts, NameAnotherExpertBeforeAnotherMatrix) {
  auto const expected = with_matrices({3, 1, 2, 3, 4, 5, 6, 7});
  auto const found = with_matrices({3, 1, 2, 3, 4, 3, 6, 7});
  auto const mismatches = differences(split_experts().model, NamedTable{"read", expected}, {"held", found}, -1);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_THAT(mismatches[0].what, HasSubstr("(holds the values of expert 1)"));
}

TEST(DifferencesOfSplitExperts, OfAnExpertThatIsNotThereNameNoOther) {
  auto const expected = with_matrices({0, 1, 2, 3, 4, 5, 6, 7});
  auto found = expected;
  found.of(2)[0] = 0;
  auto const mismatches = differences(split_experts().model, NamedTable{"read", expected}, {"held", found}, -1);
  ASSERT_EQ(mismatches.size(), 1U);
  EXPECT_THAT(mismatches[0].what, Not(HasSubstr("holds the values")));
}

// ---- by key ----

Checkpoint checkpoint_of(Model model, std::string path) {
  Checkpoint checkpoint;
  checkpoint.path = std::move(path);
  checkpoint.model = std::move(model);
  return checkpoint;
}

/// Digests whose numbers count up from `first`.
Digests counted(Model const& model, std::uint64_t first) {
  Digests digests(model);
  for (auto& value : digests.source.values()) value = first++;
  for (auto& value : digests.stored.values()) value = first++;
  return digests;
}

std::vector<std::uint64_t> numbers(DigestTable const& table, std::size_t tensor) {
  return {table.of(tensor).begin(), table.of(tensor).end()};
}

class InOrderOf : public testing::Test {
 protected:
  Digests ordered(Model const& theirs) {
    reference_ = checkpoint_of(theirs, "/the/other");
    of_reference_ = counted(theirs, 100);
    auto const matched = in_order_of(target_, reference_, of_reference_, fallback_);
    mismatches_ = matched.mismatches;
    return matched.digests;
  }
  std::vector<std::string> named() const {
    std::vector<std::string> names;
    for (auto const& mismatch : mismatches_) names.push_back(mismatch.what);
    return names;
  }

  Checkpoint const target_ = checkpoint_of(three_tensors(), "/mine");
  Digests const fallback_ = counted(three_tensors(), 1);
  Checkpoint reference_;
  Digests of_reference_;
  std::vector<Mismatch> mismatches_;
};

TEST_F(InOrderOf, ValuesThatTheOtherDoesNotKnowStayOurOwn) {
  reference_ = checkpoint_of(three_tensors(), "/the/other");
  of_reference_ = counted(three_tensors(), 100);
  of_reference_.without_values = true;
  auto const matched = in_order_of(target_, reference_, of_reference_, fallback_);
  EXPECT_THAT(matched.mismatches, IsEmpty());
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(numbers(matched.digests.source, i), numbers(of_reference_.source, i));
    EXPECT_EQ(numbers(matched.digests.stored, i), numbers(fallback_.stored, i));
  }
}

TEST_F(InOrderOf, TensorsAreMatchedByKeyWhateverTheirOrder) {
  auto theirs = three_tensors();
  std::ranges::reverse(theirs.tensors);
  auto const digests = ordered(theirs);
  EXPECT_THAT(mismatches_, IsEmpty());
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(numbers(digests.source, i), numbers(of_reference_.source, 2 - i));
    EXPECT_EQ(numbers(digests.stored, i), numbers(of_reference_.stored, 2 - i));
  }
}

TEST_F(InOrderOf, ATensorThatTheReferenceLacksIsNamedAndKeepsItsOwnDigests) {
  auto theirs = three_tensors();
  theirs.tensors.erase(theirs.tensors.begin() + kStacked);
  auto const digests = ordered(theirs);
  EXPECT_THAT(named(), ElementsAre(std::string(kExperts) + ": not in /the/other"));
  EXPECT_EQ(mismatches_[0].tensor, kExperts);
  EXPECT_EQ(numbers(digests.source, kStacked), numbers(fallback_.source, kStacked));
  EXPECT_EQ(numbers(digests.source, kConv), numbers(of_reference_.source, 1));
}

TEST_F(InOrderOf, ATensorThatOnlyTheReferenceHasIsNamed) {
  auto theirs = three_tensors();
  theirs.tensors.insert(theirs.tensors.begin(), {.key = "extra", .shape = {9}});
  auto const digests = ordered(theirs);
  EXPECT_THAT(named(), ElementsAre("extra: only in /the/other"));
  EXPECT_EQ(numbers(digests.source, kDense), numbers(of_reference_.source, 1));
}

TEST_F(InOrderOf, AReshapedTensorIsNamedWithBothShapesAndKeepsItsOwnDigests) {
  auto theirs = three_tensors();
  theirs.tensors[kStacked].shape = {2, 4, 3};
  theirs.tensors[kDense].dtype = DType::F32;
  auto const digests = ordered(theirs);
  EXPECT_THAT(named(), ElementsAre("dense: BF16 [6, 2], but F32 [6, 2] in /the/other",
                                   std::string(kExperts) + ": BF16 [4, 2, 3], but BF16 [2, 4, 3] in /the/other"));
  for (auto const i : {kDense, kStacked}) EXPECT_EQ(numbers(digests.source, i), numbers(fallback_.source, i));
  EXPECT_EQ(numbers(digests.source, kConv), numbers(of_reference_.source, kConv));
}

// ---- the report ----

TEST(VerifyReport, CountsWhatWasFoundAndNotListed) {
  VerifyReport report;
  report.mismatches.push_back({.tensor = "t", .what = "problem"});
  report.unlisted = 6;
  try {
    report.throw_if_bad();
    FAIL();
  } catch (VerifyError const& error) {
    EXPECT_STREQ(error.what(), "verification found 7 differences\n  problem\n  … and 6 more");
  }
}

VerifyReport report_of(std::size_t mismatches) {
  VerifyReport report;
  for (std::size_t i = 0; i < mismatches; ++i) {
    report.mismatches.push_back({.tensor = "t" + std::to_string(i), .what = "problem " + std::to_string(i) + "!"});
  }
  return report;
}

std::string message_of(std::size_t mismatches) {
  try {
    report_of(mismatches).throw_if_bad();
  } catch (VerifyError const& error) {
    EXPECT_EQ(error.code, ExitCode::difference);
    EXPECT_EQ(error.tensor, "t0");
    return error.what();
  }
  return "";
}

TEST(VerifyReport, WithoutMismatchesIsGood) {
  EXPECT_TRUE(report_of(0).ok());
  EXPECT_EQ(message_of(0), "");
  EXPECT_FALSE(report_of(1).ok());
}

TEST(VerifyReport, NamesTheFirstTenAndCountsTheRest) {
  EXPECT_EQ(message_of(1), "verification found 1 difference\n  problem 0!");
  EXPECT_THAT(message_of(10), AllOf(testing::StartsWith("verification found 10 differences\n"), HasSubstr("problem 9!"),
                                    Not(HasSubstr("more"))));
  EXPECT_THAT(message_of(11), AllOf(HasSubstr("problem 9!"), Not(HasSubstr("problem 10!")), HasSubstr("… and 1 more")));
  EXPECT_THAT(message_of(5000),
              AllOf(testing::StartsWith("verification found 5000 differences\n"), HasSubstr("… and 4990 more")));
  EXPECT_LT(message_of(5000).size(), 300U);
}

}  // namespace
}  // namespace rankslice
