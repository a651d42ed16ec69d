#include "format/fresh_layout.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "format/hf_folder.hpp"
#include "support/raw_safetensors.hpp"

namespace rankslice {
namespace {

TEST(FreshLayout, OneFileNeedsNeitherNumberNorIndex) {
  auto const layout = make_fresh_layout({{"w", DType::BF16, {2, 3}, {}}});
  constexpr auto kJson =
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}       )";
  ASSERT_EQ(layout.files.size(), 1U);
  EXPECT_EQ(layout.files[0].name, "model.safetensors");
  EXPECT_EQ(layout.files[0].header, test::raw_header(kJson));
  EXPECT_EQ(layout.files[0].size, layout.files[0].header.size() + 12);
  EXPECT_EQ(layout.index_name, "");
  EXPECT_TRUE(layout.index.empty());
}

TEST(FreshLayout, SeveralFilesAreNumberedAndIndexedAsHuggingfaceHubDoes) {
  auto const layout = make_fresh_layout(
      {{"z", DType::U8, {4}, {}}, {"caf\xc3\xa9\"", DType::U8, {4}, {}}, {"a", DType::U8, {8}, {}}}, 8);
  ASSERT_EQ(layout.files.size(), 2U);
  EXPECT_EQ(layout.files[0].name, "model-00001-of-00002.safetensors");
  EXPECT_EQ(layout.files[1].name, "model-00002-of-00002.safetensors");
  EXPECT_EQ(layout.index_name, "model.safetensors.index.json");
  EXPECT_EQ(layout.index, test::bytes_of(R"({
  "metadata": {
    "total_size": 16
  },
  "weight_map": {
    "z": "model-00001-of-00002.safetensors",
    "caf\u00e9\"": "model-00001-of-00002.safetensors",
    "a": "model-00002-of-00002.safetensors"
  }
})"));
}

TEST(FreshLayout, IsReadLikeThatOfAnyFolder) {
  auto const layout =
      make_fresh_layout({{"a", DType::U8, {3}, {}}, {"b", DType::U8, {5}, {}}, {"c", DType::U8, {1}, {}}}, 5);
  std::vector<std::string> warnings;
  auto const catalog = make_catalog(layout, "/out", warnings);
  ASSERT_EQ(catalog.tensors.size(), 3U);
  EXPECT_EQ(catalog.files[1].path, "/out/model-00002-of-00003.safetensors");
  EXPECT_EQ(catalog.tensors[1].name, "b");
  EXPECT_EQ(catalog.tensors[1].extent.bytes.end, catalog.files[1].size);
  EXPECT_TRUE(warnings.empty());
}

}  // namespace
}  // namespace rankslice
