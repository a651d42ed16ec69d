#include "core/json_object.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <string>

#include "rankslice/error.hpp"

namespace rankslice {
namespace {

// What FormatError says of a text, or "accepted".
std::string refusal(std::string_view text) {
  try {
    (void)parse_json_object(text, "a.json: part", "a.json");
    return "accepted";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.file, "a.json");
    return error.what();
  }
}

/// `levels` of arrays inside of the object.
std::string nested(std::size_t levels) {
  return R"({"a":)" + std::string(levels, '[') + std::string(levels, ']') + "}";
}

TEST(JsonObject, IsParsedWithAllItsLevels) {
  auto const object = parse_json_object(R"({"a": [1, {"b": "\u00fc"}], "c": {"a": null}})", "a.json", "a.json");
  EXPECT_EQ(object["a"][1]["b"], "\xc3\xbc");
  EXPECT_TRUE(object["c"]["a"].is_null());
}

TEST(JsonObject, NamesMayBeThoseOfOtherObjectsButNotOfTheSame) {
  EXPECT_EQ(refusal(R"({"a": {"a": [{"a": 1}, {"a": 2}]}, "b": {"a": 1}})"), "accepted");
  EXPECT_EQ(refusal(R"({"a": 1, "b": 2, "a": 1})"), "a.json: part: a is given twice");
  EXPECT_EQ(refusal(R"({"a": [{}, {"b": 1, "b": 2}]})"), "a.json: part: b is given twice");
  EXPECT_EQ(refusal(R"({"a": 1, "\u0061": 1})"), "a.json: part: a is given twice");
}

TEST(JsonObject, IsAtMost1024LevelsDeep) {
  EXPECT_EQ(refusal(nested(1023)), "accepted");
  EXPECT_EQ(refusal(nested(1024)), "a.json: part: nested deeper than 1024 levels");
  EXPECT_EQ(refusal(nested(1'000'000)), "a.json: part: nested deeper than 1024 levels");
  EXPECT_EQ(refusal(std::string(1'000'000, '[')), "a.json: part: nested deeper than 1024 levels");
}

TEST(JsonObject, IsNothingButValidJsonOfAnObject) {
  for (auto const* text : {"", " ", "{", "{}{}", "{}x", "{'a': 1}", R"({"a": 1e999})", R"({"a": "\ud800"})",
                           "{\"a\": \"\xff\"}", R"({"a": 1,})"}) {
    EXPECT_EQ(refusal(text), "a.json: part: no valid JSON") << text;
  }
  EXPECT_EQ(refusal(std::string("{}\0", 3)), "a.json: part: no valid JSON: it contains a NUL byte");
  EXPECT_EQ(refusal("[{}]"), "a.json: part: expected an object, found array");
  EXPECT_EQ(refusal("null"), "a.json: part: expected an object, found null");
}

}  // namespace
}  // namespace rankslice
