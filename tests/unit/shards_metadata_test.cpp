#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "rankslice/error.hpp"

#include "format/shards.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Metadata = std::map<std::string, std::string>;

constexpr auto kFile = "/shards/rank-00006.safetensors";

/// What the file of rank 6 of 12 says, written by hand.
Metadata example() {
  return {{"format", "pt"},
          {"rankslice_format", "shards/1"},
          {"mesh", R"({"ep":3,"ep_replicate":2,"ep_shard":2})"},
          {"mesh_coordinate", R"({"ep":0,"ep_replicate":1,"ep_shard":0})"},
          {"family", "qwen3_5_moe"},
          {"source", "/data/ünïcode \"checkpoint\""},
          {"source_fingerprint", "0123456789abcdef0123456789abcdef"},
          {"fingerprint", "fedcba9876543210fedcba9876543210"},
          {"headers", "selection"},
          {"expert_layout", "transformers"},
          {"decoder_experts", "grouped"},
          {"mtp_experts", "split"},
          {"tensors", R"({"a.scalar":{"global_shape":[],"hf_dtype":"BF16","offsets":[]},)"
                      R"("experts.G":{"global_shape":[7,4,6],"offsets":[3,0,0]}})"}};
}

void expect_refused(Metadata const& metadata, std::string const& field) {
  try {
    (void)parse_shard_metadata(metadata, kFile);
    ADD_FAILURE() << field << " " << (metadata.contains(field) ? metadata.at(field) : "(missing)");
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(kFile), HasSubstr("'" + field + "'")));
    EXPECT_EQ(error.file, kFile);
  }
}

void expect_refused(std::string const& field, std::string const& value) {
  auto metadata = example();
  metadata[field] = value;
  expect_refused(metadata, field);
}

TEST(ShardsMetadata, FilesAreNamedByRank) {
  EXPECT_EQ(shard_file_name(0), "rank-00000.safetensors");
  EXPECT_EQ(shard_file_name(4095), "rank-04095.safetensors");
  EXPECT_EQ(shard_file_name(123456), "rank-123456.safetensors");
}

TEST(ShardsMetadata, EveryFieldIsRead) {
  auto const shard = parse_shard_metadata(example(), kFile);
  EXPECT_EQ(shard.mesh, (Mesh{.ep_replicate = 2, .ep_shard = 2, .ep = 3}));
  EXPECT_EQ(shard.coordinate, (MeshCoordinate{.ep_replicate = 1, .ep_shard = 0, .ep = 0}));
  EXPECT_EQ(shard.family, "qwen3_5_moe");
  EXPECT_EQ(shard.source, "/data/ünïcode \"checkpoint\"");
  EXPECT_EQ(shard.source_fingerprint, "0123456789abcdef0123456789abcdef");
  EXPECT_EQ(shard.fingerprint, "fedcba9876543210fedcba9876543210");
  EXPECT_EQ(shard.headers, HeaderOrigin::selection);
  EXPECT_EQ(shard.expert_layout, "transformers");
  EXPECT_EQ(shard.decoder_experts, "grouped");
  EXPECT_EQ(shard.mtp_experts, "split");
  ASSERT_EQ(shard.tensors.size(), 2U);
  EXPECT_EQ(shard.tensors.at("experts.G").global_shape, (Shape{7, 4, 6}));
  EXPECT_EQ(shard.tensors.at("experts.G").offsets, (Shape{3, 0, 0}));
  EXPECT_EQ(shard.tensors.at("a.scalar").global_shape, Shape{});
  EXPECT_EQ(shard.tensors.at("a.scalar").hf_dtype, DType::BF16);
  EXPECT_EQ(shard.tensors.at("experts.G").hf_dtype, std::nullopt);
}

TEST(ShardsMetadata, WhatIsWrittenIsTheFormatAndIsReadBack) {
  EXPECT_EQ(to_metadata(parse_shard_metadata(example(), kFile)), example());
}

TEST(ShardsMetadata, AFolderWithoutTensorsIsTheFormatToo) {
  ShardMetadata const empty{.mesh = {},
                            .coordinate = {},
                            .family = "f",
                            .source = "s",
                            .source_fingerprint = "p",
                            .fingerprint = "q",
                            .headers = HeaderOrigin::state,
                            .expert_layout = "hub",
                            .decoder_experts = "grouped",
                            .mtp_experts = "grouped",
                            .tensors = {}};
  auto const metadata = to_metadata(empty);
  EXPECT_EQ(metadata.at("tensors"), "{}");
  EXPECT_TRUE(parse_shard_metadata(metadata, kFile).tensors.empty());
}

TEST(ShardsMetadata, EveryMissingFieldIsNamed) {
  for (auto const& [field, value] : example()) {
    if (field == "format") continue;  // transformers wants it, we do not
    auto metadata = example();
    metadata.erase(field);
    expect_refused(metadata, field);
  }
}

TEST(ShardsMetadata, AnotherVersionIsRefused) {
  for (auto const* const version : {"", "shards/2", "shards/1 "}) expect_refused("rankslice_format", version);
}

TEST(ShardsMetadata, AMeshIsThreePositiveNumbersOfARepresentableSize) {
  for (auto const* const mesh :
       {"", "{", "null", "[1,1,1]", "{}", R"({"ep":1,"ep_replicate":1})", R"({"ep":"1","ep_replicate":1,"ep_shard":1})",
        R"({"ep":1.5,"ep_replicate":1,"ep_shard":1})", R"({"ep":0,"ep_replicate":1,"ep_shard":1})",
        R"({"ep":-4,"ep_replicate":1,"ep_shard":1})", R"({"ep":4294967297,"ep_replicate":1,"ep_shard":1})",
        R"({"ep":65536,"ep_replicate":65536,"ep_shard":65536})"}) {
    expect_refused("mesh", mesh);
  }
}

TEST(ShardsMetadata, Rule16_AMeshWithDimensionsOfOtherNamesIsRefusedInUpstreamsWords) {
  auto metadata = example();
  metadata["mesh"] = R"({"ep":2,"ep_replicate":1,"ep_shard":1,"tp":4})";
  try {
    (void)parse_shard_metadata(metadata, kFile);
    ADD_FAILURE();
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("Expected mesh dimension names to contain only 'ep', 'ep_shard', "
                                        "'ep_replicate', got ('ep', 'ep_replicate', 'ep_shard', 'tp')"));
    EXPECT_EQ(error.file, kFile);
  }
  expect_refused("mesh", R"({"pp":1})");
}

TEST(ShardsMetadata, ACoordinateLiesInTheMesh) {
  for (auto const* const at :
       {"", "7", "{}", R"({"ep":3,"ep_replicate":0,"ep_shard":0})", R"({"ep":0,"ep_replicate":2,"ep_shard":0})",
        R"({"ep":0,"ep_replicate":0,"ep_shard":2})", R"({"ep":-1,"ep_replicate":0,"ep_shard":0})",
        R"({"ep":null,"ep_replicate":0,"ep_shard":0})", R"({"ep":0.5,"ep_replicate":0,"ep_shard":0})"}) {
    expect_refused("mesh_coordinate", at);
  }
}

TEST(ShardsMetadata, EveryTensorHasAShapeAndOffsetsOfNaturalNumbers) {
  for (auto const* const tensors :
       {"", "{", "null", "[]", R"({"t":null})", R"({"t":{}})", R"({"t":{"global_shape":[2]}})",
        R"({"t":{"offsets":[0]}})", R"({"t":{"global_shape":2,"offsets":[0]}})",
        R"({"t":{"global_shape":["2"],"offsets":[0]}})", R"({"t":{"global_shape":[-2],"offsets":[0]}})",
        R"({"t":{"global_shape":[2],"offsets":[-1]}})", R"({"t":{"global_shape":[2.5],"offsets":[0]}})",
        R"({"t":{"global_shape":[1e30],"offsets":[0]}})", R"({"t":{"global_shape":[2,3],"offsets":[0]}})",
        R"({"t":{"global_shape":[2],"offsets":[0,0]}})",
        R"({"t":{"global_shape":[2],"offsets":[0],"hf_dtype":"BF17"}})",
        R"({"t":{"global_shape":[2],"offsets":[0],"hf_dtype":16}})"}) {
    expect_refused("tensors", tensors);
  }
}

TEST(ShardsMetadata, TheTensorWithAWrongPlaceIsNamed) {
  auto metadata = example();
  metadata["tensors"] = R"({"good":{"global_shape":[2],"offsets":[0]},"bad":{"global_shape":[2],"offsets":[-1]}})";
  try {
    (void)parse_shard_metadata(metadata, kFile);
    ADD_FAILURE();
  } catch (FormatError const& error) {
    EXPECT_EQ(error.tensor, "bad");
    EXPECT_THAT(error.what(), HasSubstr("bad"));
  }
}

TEST(ShardsMetadata, NestedTensorsAreNoStackOverflow) {
  auto const depth = 200'000;
  expect_refused("tensors", R"({"a":)" + std::string(depth, '[') + std::string(depth, ']') + "}");
}

TEST(ShardsMetadata, ATensorInTwoPlacesIsRefused) {
  expect_refused("tensors", R"({"a":{"global_shape":[1],"offsets":[0]},"a":{"global_shape":[2],"offsets":[0]}})");
  expect_refused("mesh", R"({"ep":1,"ep_replicate":2,"ep_shard":2,"ep":3})");
}

}  // namespace
}  // namespace rankslice
