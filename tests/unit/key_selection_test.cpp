#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

bool excludes(std::string const& pattern, std::string_view key) { return !key_selection("", pattern)(key); }
bool includes(std::string const& pattern, std::string_view key) { return key_selection(pattern)(key); }

// The examples of rule 25.
TEST(KeySelection, Rule25_PatternsMatchFromTheFirstCharacterOnAndNotToTheLast) {
  EXPECT_FALSE(excludes("a", "model.a"));
  EXPECT_TRUE(excludes("mod", "model.norm.weight"));
  EXPECT_TRUE(excludes("model", "model"));
  EXPECT_FALSE(excludes("model.norm", "model"));
  EXPECT_TRUE(excludes(".*_extra_state.*", "model.layers.0.mlp._extra_state"));
  EXPECT_TRUE(excludes(".*norm$", "model.norm"));
  EXPECT_FALSE(excludes("norm$", "model.norm"));
  EXPECT_FALSE(excludes("x|norm", "model.norm")) << "every alternative begins at the first character";
}

TEST(KeySelection, Rule25_TheFinalHfNameCounts) {
  EXPECT_TRUE(excludes(R"(mtp\.fc)", "mtp.fc.weight"));
  EXPECT_FALSE(excludes(R"(mtp\.layers)", "mtp.fc.weight"));
}

TEST(KeySelection, Rule25_EmptyPatternsStandForNothing) {
  EXPECT_FALSE(key_selection("", "")) << "an empty function, which takes all keys";
  EXPECT_FALSE(key_selection(""));
  EXPECT_TRUE(key_selection("model", "")("model.a"));
  EXPECT_FALSE(key_selection("", "model")("model.a"));
}

TEST(KeySelection, WhatIsIncludedMayBeExcludedAgain) {
  auto const keys = key_selection(R"(model\.layers\.[0-3]\.)", R"(.*\.bias)");
  EXPECT_TRUE(keys("model.layers.3.weight"));
  EXPECT_FALSE(keys("model.layers.3.bias"));
  EXPECT_FALSE(keys("model.layers.4.weight"));
  EXPECT_FALSE(keys("xmodel.layers.3.weight"));
}

TEST(KeySelection, ClassesKnowUnicodeAsPythonDoes) {
  EXPECT_TRUE(includes(R"(\w\w$)", "\xc3\xa9t"));           // ét
  EXPECT_TRUE(includes("^.t", "\xc3\xa9t"));                // one character, two bytes
  EXPECT_TRUE(includes(R"((?P<l>[a-z])(?P=l))", "llama"));  // named groups as Python writes them
}

TEST(KeySelection, BadPatternsAreRefusedWithPlaceAndReason) {
  auto const refusal = [](std::string const& include, std::string const& exclude) -> std::string {
    try {
      (void)key_selection(include, exclude);
      return "accepted";
    } catch (UsageError const& error) {
      EXPECT_EQ(error.code, ExitCode::usage);
      return error.what();
    }
  };
  EXPECT_THAT(refusal("ab(", ""), AllOf(HasSubstr("include 'ab('"), HasSubstr("3"), HasSubstr("parenthesis")));
  EXPECT_THAT(refusal("", "a[z"), AllOf(HasSubstr("exclude 'a[z'"), HasSubstr("3"), HasSubstr("]")));
  EXPECT_THAT(refusal("*", ""), AllOf(HasSubstr("include '*'"), HasSubstr("quantifier")));
  EXPECT_THAT(refusal("\xff", ""), HasSubstr("UTF-8"));
}

TEST(KeySelection, APatternThatBacktracksWithoutEndIsAnErrorNotAnAnswer) {
  auto const keys = key_selection("(a+)+$");
  EXPECT_THROW((void)keys(std::string(60, 'a') + "b"), UsageError);
}

}  // namespace
}  // namespace rankslice
