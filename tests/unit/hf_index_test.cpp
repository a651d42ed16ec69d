#include "format/hf_index.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "support/raw_safetensors.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;

constexpr char const* kFile = "dir/model.safetensors.index.json";

HfIndex parse(std::string const& json) { return parse_hf_index(test::bytes_of(json), kFile); }

HfIndex parse_shard_name(std::string const& name_in_json) {
  return parse(R"({"weight_map":{"w":")" + name_in_json + "\"}}");
}

TEST(HfIndex, GivesTensorsShardsAndTotalSize) {
  auto const index = parse(R"({"metadata":{"total_size":6,"total_parameters":3},)"
                           R"("weight_map":{"b":"s2.safetensors","a":"s1.safetensors","c":"s2.safetensors"}})");
  EXPECT_THAT(index.shards, ElementsAre("s1.safetensors", "s2.safetensors"));
  ASSERT_EQ(index.entries.size(), 3u);
  EXPECT_EQ(index.entries[0].tensor, "b");
  EXPECT_EQ(index.entries[0].shard, 1u);
  EXPECT_EQ(index.entries[1].tensor, "a");
  EXPECT_EQ(index.entries[1].shard, 0u);
  EXPECT_THAT(index.tensors_per_shard(), ElementsAre(1u, 2u));
  EXPECT_EQ(index.total_size, 6u);
}

TEST(HfIndex, DoesWithoutATotalSize) {
  for (auto const* metadata : {"", R"("metadata":{},)", R"("metadata":null,)", R"("metadata":{"total_size":1.5},)"}) {
    EXPECT_EQ(parse("{"s + metadata + R"("weight_map":{"w":"s.safetensors"}})").total_size, std::nullopt) << metadata;
  }
}

TEST(HfIndex, AcceptsNamesOfShardsBelowTheFolder) {
  for (auto const* name : {"model-00001-of-00002.safetensors", "model.safetensors-00001-of-00002.safetensors",
                           "a/b/c.safetensors", "..a.safetensors", "a..b/c.safetensors", ".hidden.safetensors",
                           "with space.safetensors", "\xc3\xa9.safetensors"}) {
    EXPECT_THAT(parse_shard_name(name).shards, ElementsAre(name));
  }
}

struct BadShardName {
  std::string in_json;
  char const* reason;
};

TEST(HfIndex, RefusesNamesOfShardsThatLeadElsewhere) {
  for (auto const& [name, reason] : std::vector<BadShardName>{
           {"../x.safetensors", "\"..\""},
           {"..", ".safetensors"},
           {"a/../b.safetensors", "\"..\""},
           {"a/..", ".safetensors"},
           {"/etc/passwd", ".safetensors"},
           {"/etc/x.safetensors", "absolute"},
           {"//x.safetensors", "absolute"},
           {"./a.safetensors", "empty or \".\""},
           {"a/./b.safetensors", "empty or \".\""},
           {"a//b.safetensors", "empty or \".\""},
           {"", ".safetensors"},
           {"a/", ".safetensors"},
           {"..\\\\x.safetensors", "backslash"},
           {"C:\\\\x.safetensors", "backslash"},
           {"a\\u0000.safetensors", "control character"},
           {"a.safetensors\\u0000", ".safetensors"},
           {"a\\n.safetensors", "control character"},
           {"a\\u007f.safetensors", "control character"},
           {"a.bin", ".safetensors"},
           {"a.safetensors.index.json", ".safetensors"},
           {"A.SAFETENSORS", ".safetensors"},
       }) {
    try {
      (void)parse_shard_name(name);
      ADD_FAILURE() << "accepted " << name;
    } catch (FormatError const& error) {
      EXPECT_THAT(error.what(), HasSubstr(reason)) << name;
      EXPECT_THAT(error.what(), HasSubstr("weight_map: the shard name")) << name;
      EXPECT_EQ(error.file, kFile);
    }
  }
}

struct BadIndex {
  std::string json;
  std::string tensor;
  std::string fragment;
};

TEST(HfIndex, RefusesWhatIsNoIndexByName) {
  for (auto const& [json, tensor, fragment] : std::vector<BadIndex>{
           {"", "", "no bytes"},
           {"not JSON", "", "expected '{' at byte 0"},
           {"\xef\xbb\xbf{}", "", "byte order mark"},
           {"[]", "", "expected '{'"},
           {R"({"weight_map":{"w":"s.safetensors"})", "weight_map", "not valid JSON near byte"},
           {"{}", "", "expected a weight_map, found none"},
           {R"({"weight_map":{}})", "", "expected tensors, found none"},
           {R"({"weight_map":[]})", "", "expected an object, found []"},
           {R"({"weight_map":{"w":1}})", "w", "\"w\": expected the name of a file, found 1"},
           {R"({"weight_map":{"w":null}})", "w", "found null"},
           {R"({"weight_map":{"w":"s.safetensors"},"weight_map":{}})", "", "weight_map is given twice"},
           {R"({"metadata":{},"metadata":{},"weight_map":{"w":"s.safetensors"}})", "", "metadata is given twice"},
           {R"({"metadata":{"total_size":1,"total_size":1},"weight_map":{"w":"s.safetensors"}})", "",
            "total_size is given twice"},
           {R"({"weight_map":{"w":"s1.safetensors","v":"s1.safetensors","w":"s2.safetensors"}})", "w",
            R"("w" is given twice, in "s1.safetensors" and in "s2.safetensors")"},
           {R"({"weight_map":{"\udc00":"s.safetensors"}})", "weight_map", "not valid JSON near byte"},
       }) {
    try {
      (void)parse(json);
      ADD_FAILURE() << "accepted " << json;
    } catch (FormatError const& error) {
      EXPECT_THAT(error.what(), HasSubstr(kFile)) << json;
      EXPECT_THAT(error.what(), HasSubstr(fragment)) << json;
      EXPECT_EQ(error.file, kFile) << json;
      EXPECT_EQ(error.tensor, tensor) << json;
    }
  }
}

}  // namespace
}  // namespace rankslice
