// The digests of some units among those of a model: what a record keeps of them is what it gives back.

#include "unit_sums.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "rankslice/error.hpp"

#include "support/hand_model.hpp"

namespace rankslice {
namespace {

using testing::Each;
using testing::ElementsAre;

/// Parameters: a dense tensor, which is converted, grouped experts, and split ones (D, then G of gate and up).
struct Example {
  Example() {
    test::append_dense(model, "dense", DType::BF16, DType::F32, {4});
    test::append_grouped(model, "grouped", {3, 2, 2});
    test::append_split(model, "split", 2, 4, 3);
    digests = Digests(model);
    auto const source = digests.source.values();
    std::iota(source.begin(), source.end(),
              1);  // dense 1; grouped 2, 3, 4; down, gate, up of 0: 5, 6, 7; of 1: 8, 9, 10
    digests.stored.of(0)[0] = 100;
  }
  Model model;
  Digests digests;
};

PlannedSlice experts(Model const& model, std::uint32_t parameter, Range part) {
  return {parameter, {.part = part, .rows = model.parameters[parameter].whole().rows}};
}

TEST(UnitSums, AreThoseOfTheExpertsAndOfConvertedValues) {
  Example const example;
  auto const sums = [&](PlannedSlice const& unit) { return sums_of_units(example.model, example.digests, {unit}); };
  EXPECT_THAT(sums({0, example.model.parameters[0].whole()}), ElementsAre(1, 100));
  EXPECT_THAT(sums(experts(example.model, 1, {1, 3})), ElementsAre(3, 4));
  EXPECT_THAT(sums(experts(example.model, 2, {1, 2})), ElementsAre(8));
  EXPECT_THAT(sums(experts(example.model, 3, {0, 1})), ElementsAre(6, 7));
}

TEST(UnitSums, OfAllUnitsGiveTheWholeTableBack) {
  Example const example;
  Digests whole(example.model);
  for (std::uint32_t i = 0; i < example.model.parameters.size(); ++i) {
    auto const& parameter = example.model.parameters[i];
    auto const units = parameter.stacked_experts ? parameter.part_count() : 1;
    for (std::uint64_t unit = 0; unit < units; ++unit) {
      auto const part = parameter.stacked_experts ? Range{unit, unit + 1} : parameter.whole().part;
      std::vector const one{experts(example.model, i, part)};
      auto const sums = sums_of_units(example.model, example.digests, one);
      EXPECT_EQ(count_sums(example.model, one), sums.size());
      add_sums(example.model, sums, one, whole);
    }
  }
  EXPECT_TRUE(std::ranges::equal(whole.source.values(), example.digests.source.values()));
  EXPECT_EQ(whole.stored.of(0)[0], 100U);
}

TEST(UnitSums, OfSomeUnitsLeaveTheOthersOut) {
  Example const example;
  auto const some = of_units(example.model, example.digests, {experts(example.model, 1, {0, 1})});
  EXPECT_THAT(some.source.values(), ElementsAre(0, 2, 0, 0, 0, 0, 0, 0, 0, 0));
  auto rest = without(some, example.digests);
  EXPECT_THAT(rest.source.values(), ElementsAre(1, 0, 3, 4, 5, 6, 7, 8, 9, 10));
  add_digests(some, rest);
  EXPECT_TRUE(std::ranges::equal(rest.source.values(), example.digests.source.values()));
  EXPECT_THAT(without(rest, rest).source.values(), Each(0));
}

TEST(UnitSums, OfExpertsThatShareADigestCannotBeToldApart) {
  Example example;
  auto const down = example.model.parameters[2].tensors.front();
  example.model.tensors[down].experts = {0, 2};
  EXPECT_THROW((void)count_sums(example.model, {experts(example.model, 2, {0, 1})}), PlanError);
}

}  // namespace
}  // namespace rankslice
