// Folders of shards whose source is gone, broken, or never was.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstring>
#include <filesystem>

#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"

#include "support/model_catalog.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;
namespace fs = std::filesystem;

/// The error that opening ends with, as "code message".
std::string refusal(std::string const& path, OpenOptions const& options = {}) {
  try {
    (void)open_checkpoint(path, options);
  } catch (Error const& error) {
    return std::to_string(static_cast<int>(error.code)) + " " + error.what();
  }
  return "opened";
}

class OrphanedShards : public testing::Test {
 protected:
  std::string source() const { return dir_.file("source"); }
  std::string shards() const { return dir_.file("shards"); }

  /// The shards of two ranks of a model with split or grouped experts.
  void save(ExpertForm decoder, ExpertForm mtp) const {
    auto shape = test::tiny_qwen35();
    shape.experts_form = decoder;
    shape.mtp_form = mtp;
    test::write_checkpoint(source(), test::make_catalog(shape), test::make_config_json(shape));
    auto const checkpoint = open_checkpoint(source());
    auto const mesh = make_mesh(2);
    for (int rank = 0; rank < 2; ++rank) save_shard(load(checkpoint, mesh, mesh.coordinate(rank)), shards());
  }

  test::TempDir dir_;
};

// Split experts, a BF16 dt_bias that is held in F32, …
TEST_F(OrphanedShards, GiveTheTensorsBackAsTheSourceHadThem) {
  for (auto const decoder : {ExpertForm::grouped, ExpertForm::split}) {
    for (auto const mtp : {ExpertForm::grouped, ExpertForm::split}) {
      SCOPED_TRACE(testing::Message() << name(decoder) << ", " << name(mtp));
      for (auto const* const folder : {"source", "shards", "out"}) fs::remove_all(dir_.file(folder));
      save(decoder, mtp);
      auto const expected = test::read_raw_tensors(source());
      fs::remove_all(source());
      to_hf(*open_checkpoint(shards()), dir_.file("out"), *make_solo_communicator());
      auto const found = test::read_raw_tensors(dir_.file("out"));
      ASSERT_EQ(found.size(), expected.size());
      for (auto const& [key, tensor] : expected) {
        ASSERT_TRUE(found.contains(key)) << key;
        EXPECT_EQ(found.at(key).dtype, tensor.dtype) << key;
        EXPECT_EQ(found.at(key).shape, tensor.shape) << key;
        EXPECT_TRUE(found.at(key).bytes == tensor.bytes) << key;
      }
    }
  }
}

TEST_F(OrphanedShards, ASourceThatLacksAFileIsBrokenAndNotGone) {
  save(ExpertForm::grouped, ExpertForm::grouped);
  fs::remove(source() + "/model-00002-of-00002.safetensors");
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("66 "), HasSubstr(shards()), HasSubstr("is there, but"),
                                       HasSubstr("model-00002-of-00002.safetensors"), HasSubstr("--source")));
  fs::remove_all(source());
  fs::create_directory(source());
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("66 "), HasSubstr("is there, but"), HasSubstr("an empty folder")));
  fs::remove(source());
  EXPECT_THAT(open_checkpoint(shards())->warnings, Contains(AllOf(HasSubstr(source()), HasSubstr("is gone"))));
}

TEST_F(OrphanedShards, AreSplitIntoFilesThatAreNowhere) {
  save(ExpertForm::grouped, ExpertForm::grouped);
  fs::remove_all(source());
  for (auto const& file : open_checkpoint(shards())->catalog.files) EXPECT_THAT(file.path, IsEmpty());
}

// ---- shards written by hand ----

constexpr auto kGateUp = "mtp.layers.0.mlp.experts.gate_and_up_projs";
constexpr auto kDown = "mtp.layers.0.mlp.experts.down_projs";

/// The metadata of the only rank of a job, whose tensors are two experts of H = 1, I = 1, without a source.
Json metadata() {
  return {{"rankslice_format", "shards/1"},
          {"mesh", R"({"ep":1,"ep_replicate":1,"ep_shard":1})"},
          {"mesh_coordinate", R"({"ep":0,"ep_replicate":0,"ep_shard":0})"},
          {"family", "qwen3_5_moe"},
          {"source", ""},
          {"source_fingerprint", "0"},
          {"fingerprint", "0"},
          {"headers", "state"},
          {"expert_layout", "hub"},
          {"decoder_experts", "grouped"},
          {"mtp_experts", "split"}};
}

/// … with this global shape of the gate and up matrices, of which `local` is there.
void write_shards(std::string const& folder, Json metadata, Json const& global_shape, Json const& local) {
  std::uint64_t bytes = 2;
  for (auto const& axis : local) bytes *= axis.get<std::uint64_t>();
  metadata["tensors"] = Json{{kGateUp, {{"global_shape", global_shape}, {"offsets", {0, 0, 0}}}},
                             {kDown, {{"global_shape", {2, 1, 1}}, {"offsets", {0, 0, 0}}}}}
                            .dump();
  Json const header{{"__metadata__", metadata},
                    {kGateUp, {{"dtype", "BF16"}, {"shape", local}, {"data_offsets", {0, bytes}}}},
                    {kDown, {{"dtype", "BF16"}, {"shape", {2, 1, 1}}, {"data_offsets", {bytes, bytes + 4}}}}};
  fs::create_directories(folder);
  test::write_safetensors(folder + "/rank-00000.safetensors", header.dump(), bytes + 4);
}

TEST_F(OrphanedShards, ThatClaimMoreThanTheyHoldAreRefusedBeforeAnythingIsBuiltOfIt) {
  write_shards(shards(), metadata(), {2, 1, 2}, {2, 1, 2});
  ASSERT_EQ(refusal(shards()), "opened");
  auto const many = std::uint64_t{1} << 60;
  for (auto const& shape : {Json{many, 1, 2}, Json{many, many, 2}, Json{3, 1, 2}}) {
    write_shards(shards(), metadata(), shape, {2, 1, 2});
    EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("rank-00000.safetensors"), HasSubstr(kGateUp),
                                         HasSubstr("more than the 8 bytes")))
        << shape;
  }
  for (auto const& shape : {Json{many, 0, 2}, Json{many, 1, 0}}) {
    write_shards(shards(), metadata(), shape, {0, 0, 0});
    EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kGateUp), HasSubstr("none of them 0"))) << shape;
  }
}

TEST_F(OrphanedShards, AFamilyThatIsAskedForCountsInsteadOfTheRecordedOne) {
  auto renamed = metadata();
  renamed["family"] = "qwen9_moe";
  write_shards(shards(), renamed, {2, 1, 2}, {2, 1, 2});
  EXPECT_THAT(refusal(shards()), HasSubstr("qwen9_moe"));
  EXPECT_EQ(refusal(shards(), {.family = "qwen3_5_moe"}), "opened");
}

TEST_F(OrphanedShards, ADtypeThatIsNotWhatWasWidenedIsRefused) {
  save(ExpertForm::grouped, ExpertForm::grouped);
  fs::remove_all(source());
  auto const path = shards() + "/rank-00000.safetensors";
  auto const file = test::file_bytes(path);
  std::string text(reinterpret_cast<char const*>(file.data()), file.size());
  auto const widened = std::string(R"(\"hf_dtype\":\"BF16\")");
  auto const at = text.find(widened);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, widened.size(), R"(\"hf_dtype\":\"BOOL\")");
  test::write_file(path, test::bytes_of(text));
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("dt_bias"), HasSubstr("expected BOOL")));
}

TEST_F(OrphanedShards, AnUnknownFormOfExpertsIsNamed) {
  for (auto const* const field : {"expert_layout", "decoder_experts", "mtp_experts"}) {
    auto odd = metadata();
    odd[field] = "sideways";
    write_shards(shards(), odd, {2, 1, 2}, {2, 1, 2});
    EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(std::string(field) + " 'sideways'"))) << field;
  }
}

}  // namespace
}  // namespace rankslice
