#include "format/hub_files.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "synth/hub_index.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;

std::vector<SafetensorsHeader::Tensor> tensors_of_bytes(std::vector<std::uint64_t> const& sizes) {
  std::vector<SafetensorsHeader::Tensor> tensors;
  for (auto const size : sizes) tensors.push_back({fmt::format("t{}", tensors.size()), DType::U8, {size}, {}});
  return tensors;
}

std::vector<std::vector<std::uint64_t>> sizes_by_file(std::vector<HubFile> const& files) {
  std::vector<std::vector<std::uint64_t>> sizes;
  for (auto const& file : files) {
    sizes.emplace_back();
    for (auto const& tensor : file.tensors) sizes.back().push_back(tensor.shape[0]);
  }
  return sizes;
}

// Expected: huggingface_hub.serialization.split_state_dict_into_shards_factory.
TEST(SplitIntoFiles, FillsOneFileAfterTheOtherInOrder) {
  EXPECT_THAT(sizes_by_file(split_into_files(tensors_of_bytes({6, 6, 2, 6, 2, 2}), 10)),
              ElementsAre(ElementsAre(6), ElementsAre(6, 2), ElementsAre(6, 2, 2)));
}

TEST(SplitIntoFiles, CountsTensorsWithoutElements) {
  EXPECT_THAT(sizes_by_file(split_into_files(tensors_of_bytes({0, 10, 0}), 10)), ElementsAre(ElementsAre(0, 10, 0)));
}

TEST(SplitIntoFiles, FillsAFileUpToTheLimitItself) {
  EXPECT_THAT(sizes_by_file(split_into_files(tensors_of_bytes({6, 4, 1}), 10)),
              ElementsAre(ElementsAre(6, 4), ElementsAre(1)));
}

TEST(SplitIntoFiles, GivesATensorOverTheLimitAFileOfItsOwnAndGoesOnWithTheOpenOne) {
  EXPECT_THAT(sizes_by_file(split_into_files(tensors_of_bytes({3, 11, 4, 20, 5}), 10)),
              ElementsAre(ElementsAre(11), ElementsAre(20), ElementsAre(3, 4), ElementsAre(5)));
}

// 30 bytes in shares of 10: the tensors begin at 0, 6, 9, 12, 20 and 29.
TEST(DealIntoFiles, PutsATensorWhereItsFirstByteFallsInEqualShares) {
  EXPECT_THAT(sizes_by_file(deal_into_files(tensors_of_bytes({6, 3, 3, 8, 9, 1}), 10)),
              ElementsAre(ElementsAre(6, 3, 3), ElementsAre(8), ElementsAre(9, 1)));
}

TEST(DealIntoFiles, LeavesNoFileEmptyWhereATensorCoversAShare) {
  auto const files = deal_into_files(tensors_of_bytes({5, 21, 4}), 10, "model.safetensors");
  EXPECT_THAT(sizes_by_file(files), ElementsAre(ElementsAre(5, 21), ElementsAre(4)));
  EXPECT_EQ(files[1].name, "model.safetensors-00002-of-00002.safetensors");
}

TEST(SplitIntoFiles, NamesTheFilesAsTheHubDoes) {
  auto const files = split_into_files(tensors_of_bytes({6, 6, 2, 6, 2, 2}), 10);
  EXPECT_EQ(files[0].name, "model-00001-of-00003.safetensors");
  EXPECT_EQ(files[2].name, "model-00003-of-00003.safetensors");
  EXPECT_EQ(split_into_files(tensors_of_bytes({6, 6}), 10, "model.safetensors")[1].name,
            "model.safetensors-00002-of-00002.safetensors");
  EXPECT_EQ(split_into_files(tensors_of_bytes({6}), 10)[0].name, "model.safetensors");
}

std::vector<HubFile> two_files() {
  return {{"model-00001-of-00002.safetensors", {{"b.weight", DType::BF16, {3, 5}, {}}}},
          {"model-00002-of-00002.safetensors", {{"a", DType::F32, {}, {}}, {"c", DType::U8, {0}, {}}}}};
}

TEST(IndexJson, IsSortedAsOnTheHub) {
  EXPECT_EQ(index_json(two_files()), R"({
  "metadata": {
    "total_size": 34
  },
  "weight_map": {
    "a": "model-00002-of-00002.safetensors",
    "b.weight": "model-00001-of-00002.safetensors",
    "c": "model-00002-of-00002.safetensors"
  }
}
)");
}

TEST(IndexJson, FromTransformersCountsTheParametersToo) {
  EXPECT_EQ(index_json(two_files(), SynthLayout::transformers), R"({
  "metadata": {
    "total_parameters": 16,
    "total_size": 34
  },
  "weight_map": {
    "a": "model-00002-of-00002.safetensors",
    "b.weight": "model-00001-of-00002.safetensors",
    "c": "model-00002-of-00002.safetensors"
  }
}
)");
}

}  // namespace
}  // namespace rankslice
