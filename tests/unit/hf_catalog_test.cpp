#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "format/hf_folder.hpp"
#include "support/raw_safetensors.hpp"

namespace rankslice {
namespace {

using test::bytes_of;
using test::raw_header;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// A file with one-byte tensors, in this order.
HfFile file_with(std::string const& name, std::vector<std::string> const& tensors) {
  std::string json = "{";
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    json += (i == 0 ? "\"" : ",\"") + tensors[i] + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" +
            std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  }
  auto const header = raw_header(json + "}");
  return {name, header.size() + tensors.size(), header};
}

HfLayout layout_of(std::vector<HfFile> files, std::string const& index = "") {
  HfLayout layout;
  layout.files = std::move(files);
  layout.index = bytes_of(index);
  if (!index.empty()) layout.index_name = "model.safetensors.index.json";
  return layout;
}

class MakeCatalog : public testing::Test {
 protected:
  TensorCatalog make(HfLayout const& layout) { return make_catalog(layout, "dir", warnings_); }

  /// Expect a refusal that names this tensor, and these texts in its message.
  void expect_refused(HfLayout const& layout, std::string const& tensor, std::vector<std::string> const& fragments) {
    try {
      (void)make(layout);
      ADD_FAILURE() << "expected a FormatError, found none";
    } catch (FormatError const& error) {
      EXPECT_EQ(error.code, ExitCode::bad_data);
      EXPECT_EQ(error.tensor, tensor);
      EXPECT_THAT(error.what(), HasSubstr('"' + tensor + '"'));
      for (auto const& fragment : fragments) EXPECT_THAT(error.what(), HasSubstr(fragment));
    }
  }

  std::vector<std::string> warnings_;
};

TEST_F(MakeCatalog, IsTheSameHoweverManyThreadsParse) {
  std::vector<HfFile> files;
  for (int file = 10; file < 50; ++file) {
    std::vector<std::string> names;  // more than a MiB of JSON for each of four threads
    for (int i = 0; i < 2000; ++i) names.push_back("layer." + std::to_string(file) + ".tensor." + std::to_string(i));
    files.push_back(file_with(std::to_string(file) + ".safetensors", names));
  }
  auto const layout = layout_of(std::move(files));
  auto const alone = make(layout);
  auto const by_four = make_catalog(layout, "dir", warnings_, 4);
  ASSERT_EQ(by_four.tensors.size(), 80'000U);
  for (std::size_t i = 0; i < alone.tensors.size(); ++i) {
    ASSERT_EQ(by_four.tensors[i].name, alone.tensors[i].name);
    ASSERT_EQ(by_four.tensors[i].extent, alone.tensors[i].extent);
  }
}

TEST_F(MakeCatalog, WithoutAFolderFilesHaveNoPathAndAreStillNamed) {
  auto const catalog = make_catalog(layout_of({file_with("s1.safetensors", {"x"})}), "", warnings_);
  EXPECT_EQ(catalog.files[0].name, "s1.safetensors");
  EXPECT_EQ(catalog.files[0].path, "");
  auto const twice = layout_of({file_with("s1.safetensors", {"x"}), file_with("s2.safetensors", {"x"})});
  try {
    (void)make_catalog(twice, "", warnings_);
    ADD_FAILURE() << "expected a FormatError, found none";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.file, "s2.safetensors");
    EXPECT_THAT(error.what(), HasSubstr("s1.safetensors"));
  }
}

TEST_F(MakeCatalog, OrdersTensorsByFileAndFirstByte) {
  auto const layout = layout_of({file_with("a/s1.safetensors", {"z", "y"}), file_with("s2.safetensors", {"x", "w"})});
  auto const catalog = make(layout);
  ASSERT_EQ(catalog.files.size(), 2u);
  EXPECT_EQ(catalog.files[0].name, "a/s1.safetensors");
  EXPECT_EQ(catalog.files[0].path, "dir/a/s1.safetensors");
  EXPECT_EQ(catalog.files[0].size, layout.files[0].size);
  std::vector<std::string> names;
  for (auto const& tensor : catalog.tensors) names.push_back(tensor.name);
  EXPECT_THAT(names, ElementsAre("z", "y", "x", "w"));
  auto const begin = layout.files[1].header.size();
  EXPECT_EQ(catalog.tensors[3].extent, (Extent{1, {begin + 1, begin + 2}}));
  EXPECT_EQ(catalog.tensors[3].dtype, DType::U8);
  EXPECT_EQ(catalog.tensors[3].shape, Shape{1});
}

TEST_F(MakeCatalog, OrdersTensorsAtOneOffsetByName) {
  auto const header = raw_header(R"({"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                                 R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})");
  auto const catalog = make(layout_of({{"s.safetensors", header.size(), header}}));
  EXPECT_EQ(catalog.tensors[0].name, "a");
  EXPECT_EQ(catalog.tensors[1].name, "b");
}

TEST_F(MakeCatalog, AcceptsAnIndexThatNamesEachTensorInItsShard) {
  auto const catalog = make(layout_of({file_with("s1.safetensors", {"a"}), file_with("s2.safetensors", {"b", "c"})},
                                      R"({"metadata":{"total_size":3},"weight_map":{"c":"s2.safetensors",)"
                                      R"("a":"s1.safetensors","b":"s2.safetensors"}})"));
  EXPECT_EQ(catalog.tensors.size(), 3u);
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(MakeCatalog, WarnsOfAWrongTotalSize) {
  (void)make(layout_of({file_with("s.safetensors", {"a", "b"})},
                       R"({"metadata":{"total_size":9},)"
                       R"("weight_map":{"a":"s.safetensors","b":"s.safetensors"}})"));
  EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr("dir/model.safetensors.index.json"), HasSubstr("total_size is 9"),
                                           HasSubstr("2 bytes"))));
}

TEST_F(MakeCatalog, RefusesATensorThatIsInNoShard) {
  expect_refused(
      layout_of({file_with("s.safetensors", {"a"})}, R"({"weight_map":{"a":"s.safetensors","gone":"s.safetensors"}})"),
      "gone", {"model.safetensors.index.json", "expected in s.safetensors", "found in no shard"});
}

TEST_F(MakeCatalog, RefusesATensorInAnotherShardThanTheIndexSays) {
  expect_refused(layout_of({file_with("s1.safetensors", {"a", "b"}), file_with("s2.safetensors", {"c"})},
                           R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"}})"),
                 "b", {"model.safetensors.index.json", "expected in s2.safetensors", "found in s1.safetensors"});
}

TEST_F(MakeCatalog, RefusesATensorInTwoShards) {
  expect_refused(layout_of({file_with("s1.safetensors", {"a", "b"}), file_with("s2.safetensors", {"c", "a"})},
                           R"({"weight_map":{"a":"s1.safetensors","b":"s1.safetensors","c":"s2.safetensors"}})"),
                 "a", {"dir/s1.safetensors", "dir/s2.safetensors"});
}

TEST_F(MakeCatalog, RefusesATensorThatTheIndexDoesNotName) {
  expect_refused(layout_of({file_with("s.safetensors", {"a", "extra"})}, R"({"weight_map":{"a":"s.safetensors"}})"),
                 "extra", {"model.safetensors.index.json", "found in s.safetensors", "does not name it"});
}

TEST_F(MakeCatalog, RefusesATensorInTwoFilesWithoutAnIndex) {
  expect_refused(layout_of({file_with("a.safetensors", {"w"}), file_with("b.safetensors", {"w"})}), "w",
                 {"dir/a.safetensors", "dir/b.safetensors"});
}

TEST_F(MakeCatalog, RefusesABrokenHeaderByItsFile) {
  try {
    (void)make(layout_of({file_with("a.safetensors", {"w"}), {"b.safetensors", 11, raw_header("{")}}));
    FAIL() << "expected a FormatError";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.file, "dir/b.safetensors");
  }
}

}  // namespace
}  // namespace rankslice
