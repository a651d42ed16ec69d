// Rule 43: the language model of a multimodal checkpoint by itself.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"

#include "model/family.hpp"
#include "model/qwen3_5_moe.hpp"
#include "model/qwen3_moe.hpp"
#include "model/qwen3_vl_moe.hpp"
#include "support/model_catalog.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::append_tensor;
using test::map_tensors;
using testing::AllOf;
using testing::HasSubstr;

Family const& qwen35_text() { return *qwen3_5_moe().text_only; }
Family const& qwen_vl_text() { return *qwen3_vl_moe().text_only; }

std::string fqn_of(Family const& family, std::string_view hf_key, std::string_view prefix = "model.") {
  return from_hf(family.keys, hf_key, prefix).fqn;
}

// ---- names ----

TEST(TextOnly, Rule43_EveryNameLosesTheLanguageModelInEverySpelling) {
  for (std::string const rest : {"embed_tokens.weight", "norm.weight", "layers.3.self_attn.q_proj.weight",
                                 "layers.0.mlp.gate.weight", "layers.0.mlp.shared_expert_gate.weight"}) {
    for (auto const* family : {&qwen35_text(), &qwen_vl_text()}) {
      for (std::string const at : {"model.language_model.", "language_model.", "model.", ""}) {
        EXPECT_EQ(fqn_of(*family, at + rest), "model." + rest) << at;
      }
      EXPECT_EQ(fqn_of(*family, "language_model." + rest, ""), rest);
    }
  }
}

TEST(TextOnly, Rules32And43_ExpertsHaveNoLanguageModelInTheirNames) {
  std::string const fqn = "model.layers.7.mlp.experts.down_projs";
  for (std::string const at : {"model.language_model.", "language_model.", "model.", ""}) {
    EXPECT_EQ(fqn_of(qwen35_text(), at + "layers.7.mlp.experts.down_proj"), fqn);
    EXPECT_EQ(fqn_of(qwen35_text(), at + "layers.7.mlp.experts.3.down_proj.weight"), fqn);
    EXPECT_EQ(fqn_of(qwen_vl_text(), at + "layers.7.mlp.experts.down_proj"), fqn);
  }
  EXPECT_EQ(fqn_of(qwen3_5_moe(), "model.layers.7.mlp.experts.down_proj"),
            "model.language_model.layers.7.mlp.experts.down_projs");
}

TEST(TextOnly, Rule43_TheOtherRulesStay) {
  EXPECT_EQ(fqn_of(qwen35_text(), "model.language_model.layers.0.mlp.shared_expert.up_proj.weight"),
            "model.layers.0.mlp.shared_experts.up_proj.weight");
  EXPECT_EQ(fqn_of(qwen35_text(), "model.language_model.layers.0.linear_attn.A_log"),
            "model.layers.0.linear_attn._fp32_params.A_log");
  EXPECT_EQ(fqn_of(qwen35_text(), "model.mtp.fc.weight"), "mtp.layers.0.eh_proj.weight");
  EXPECT_EQ(fqn_of(qwen35_text(), "mtp.layers.0.mlp.experts.down_proj"), "mtp.layers.0.mlp.experts.down_projs");
  EXPECT_EQ(fqn_of(qwen35_text(), "lm_head.weight"), "lm_head.weight");
}

TEST(TextOnly, Rule43_OnlyTheSegmentBehindThePrefixIsDropped) {
  EXPECT_EQ(fqn_of(qwen35_text(), "model.adapter.language_model.weight"), "model.adapter.language_model.weight");
  EXPECT_EQ(fqn_of(qwen35_text(), "model.language_models.weight"), "model.language_models.weight");
}

TEST(TextOnly, Rule43_VisionIsLeftOutAndNothingElse) {
  for (auto const* family : {&qwen35_text(), &qwen_vl_text()}) {
    EXPECT_TRUE(is_left_out(family->keys, "model.visual.blocks.0.attn.qkv.bias"));
    EXPECT_TRUE(is_left_out(family->keys, "visual.pos_embed.weight"));
    for (auto const* key : {"model.language_model.norm.weight", "lm_head.weight", "mtp.fc.weight", "model.visuals.x",
                            "model.language_model.visual.weight"}) {
      EXPECT_FALSE(is_left_out(family->keys, key)) << key;
    }
  }
  for (auto const* family : families()) EXPECT_FALSE(is_left_out(family->keys, "model.visual.pos_embed.weight"));
}

TEST(TextOnly, Rule43_KeysThatMeetInOneNameAreRefused) {
  auto const refusal = [](std::string const& key, Shape const& shape) {
    auto catalog = test::make_catalog(test::tiny_qwen35());
    append_tensor(catalog, key, DType::BF16, shape);
    return test::refusal_of([&] { (void)map_tensors(qwen35_text(), catalog, test::make_config(test::tiny_qwen35())); });
  };
  EXPECT_THAT(refusal("model.norm.weight", {16}).message,
              AllOf(HasSubstr("model.norm.weight"), HasSubstr("model.language_model.norm.weight")));
  EXPECT_THAT(refusal("model.layers.0.mlp.experts.down_proj", {4, 16, 8}).message,
              AllOf(HasSubstr("model.layers.0.mlp.experts.down_proj"),
                    HasSubstr("model.language_model.layers.0.mlp.experts.down_proj")));
}

// ---- which family ----

ModelConfig of_type(std::string model_type) {
  ModelConfig config;
  config.model_type = std::move(model_type);
  return config;
}

TEST(TextOnly, Rule43_IsAutomaticForTextModels) {
  EXPECT_EQ(find_family("auto", of_type("qwen3_5_moe_text")).name, "qwen3_5_moe_text");
  EXPECT_EQ(find_family("qwen3_5_moe", of_type("qwen3_5_moe_text")).name, "qwen3_5_moe_text");
  EXPECT_EQ(find_family("auto", of_type("qwen3_vl_moe_text")).name, "qwen3_vl_moe_text");
  EXPECT_EQ(find_family("auto", of_type("qwen3_5_moe_text"), false).name, "qwen3_5_moe");
}

TEST(TextOnly, Rule43_IsAskedForOtherwise) {
  EXPECT_EQ(find_family("auto", of_type("qwen3_5_moe")).name, "qwen3_5_moe");
  EXPECT_EQ(find_family("auto", of_type("qwen3_5_moe"), true).name, "qwen3_5_moe_text");
  EXPECT_EQ(find_family("qwen3_5_moe", {}, true).name, "qwen3_5_moe_text");
  EXPECT_EQ(find_family("qwen3_5_moe_text", of_type("qwen3_5_moe")).name, "qwen3_5_moe_text");
  EXPECT_TRUE(is_text_only(find_family("qwen3_vl_moe", {}, true).name));
  EXPECT_FALSE(is_text_only("qwen3_vl_moe"));
}

TEST(TextOnly, Rule43_ChangesNothingForFamiliesOfTextModels) {
  EXPECT_EQ(&find_family("auto", of_type("qwen3_moe"), true), &qwen3_moe());
  EXPECT_EQ(fqn_of(qwen3_moe(), "model.layers.0.mlp.experts.0.down_proj.weight"),
            "model.layers.0.mlp.experts.down_projs");
}

// ---- opening ----

std::set<std::string> names_of(Checkpoint const& checkpoint) {
  std::set<std::string> names;
  for (auto const& parameter : checkpoint.model.parameters) names.insert(parameter.fqn);
  return names;
}

class TextOnlyCheckpoint : public testing::Test {
 protected:
  TextOnlyCheckpoint() { test::write_checkpoint(source(), catalog_, test::make_config_json(test::tiny_qwen35())); }

  [[nodiscard]] std::string source() const { return dir_.file("source"); }
  [[nodiscard]] std::string shards() const { return dir_.file("shards"); }

  void save_shards_of_two_ranks(OpenOptions const& options) const {
    auto const checkpoint = open_checkpoint(source(), options);
    auto const mesh = make_mesh(2);
    for (int rank = 0; rank < 2; ++rank) save_shard(load(checkpoint, mesh, mesh.coordinate(rank)), shards());
  }

  /// Its tensors that are not of the vision part.
  [[nodiscard]] std::map<std::string, test::Bytes> expected() const {
    std::map<std::string, test::Bytes> tensors;
    for (auto const& [key, raw] : test::read_raw_tensors(source())) {
      if (!key.starts_with("model.visual.")) tensors.emplace(key, raw.bytes);
    }
    return tensors;
  }

  test::TempDir dir_;
  TensorCatalog catalog_ = test::make_catalog(test::tiny_qwen35());
};

std::map<std::string, test::Bytes> exported(Checkpoint const& checkpoint, std::string const& folder) {
  to_hf(checkpoint, folder, *make_solo_communicator());
  std::map<std::string, test::Bytes> tensors;
  for (auto const& [key, raw] : test::read_raw_tensors(folder)) tensors.emplace(key, raw.bytes);
  return tensors;
}

TEST_F(TextOnlyCheckpoint, Rule43_HoldsAllButVisionAndExportsItUnderTheSourcesNames) {
  auto const whole = open_checkpoint(source());
  auto const text = open_checkpoint(source(), {.text_only = true});
  EXPECT_EQ(text->family, "qwen3_5_moe_text");
  EXPECT_EQ(text->hf.headers, HeaderOrigin::selection);
  EXPECT_EQ(text->source_fingerprint, whole->fingerprint);
  std::set<std::string> expected_names;
  for (auto name : names_of(*whole)) {
    if (name.starts_with("model.visual.")) continue;
    if (name.starts_with("model.language_model.")) name.erase(6, 15);
    expected_names.insert(name);
  }
  EXPECT_EQ(names_of(*text), expected_names);
  EXPECT_EQ(exported(*text, dir_.file("out")), expected());
}

TEST_F(TextOnlyCheckpoint, Rule43_ShardsKeepTheirNamesAndOpenWithoutAskingAgain) {
  save_shards_of_two_ranks({.text_only = true});
  for (auto const& options : {OpenOptions{}, OpenOptions{.family = "qwen3_5_moe"}, OpenOptions{.text_only = true}}) {
    auto const again = open_checkpoint(shards(), options);
    EXPECT_TRUE(names_of(*again).contains("model.layers.0.mlp.experts.down_projs"));
    EXPECT_EQ(again->family, "qwen3_5_moe_text");
    EXPECT_EQ(again->fingerprint, open_checkpoint(source(), {.text_only = true})->fingerprint);
  }
  EXPECT_EQ(exported(*open_checkpoint(shards()), dir_.file("out")), expected());
}

TEST_F(TextOnlyCheckpoint, Rule43_ShardsThatHaveOutlivedTheirSourceAreATextModel) {
  save_shards_of_two_ranks({.text_only = true});
  auto const before = expected();
  std::filesystem::remove_all(source());
  auto const found = exported(*open_checkpoint(shards()), dir_.file("out"));
  EXPECT_EQ(found.size(), before.size());
  EXPECT_EQ(found.at("model.layers.0.mlp.experts.down_proj"),
            before.at("model.language_model.layers.0.mlp.experts.down_proj"));
}

TEST_F(TextOnlyCheckpoint, Rule43_NamesThatWereSavedAreNotChangedByAsking) {
  save_shards_of_two_ranks({});
  auto const of_whole = test::refusal_of([&] { (void)open_checkpoint(shards(), {.text_only = true}); });
  EXPECT_EQ(of_whole.code, ExitCode::usage);
  EXPECT_THAT(of_whole.message, AllOf(HasSubstr(shards()), HasSubstr("--text-only")));
  EXPECT_TRUE(names_of(*open_checkpoint(shards())).contains("model.language_model.norm.weight"));
}

TEST_F(TextOnlyCheckpoint, Rule43_WithoutVisionKeysTheFilesAreTheSources) {
  std::erase_if(catalog_.tensors, [](auto const& tensor) { return tensor.name.starts_with("model.visual."); });
  test::TempDir const other;
  test::write_checkpoint(other.file("text"), catalog_, R"({"model_type": "qwen3_5_moe_text", "num_experts": 4,
                                                           "hidden_size": 16, "moe_intermediate_size": 8})");
  auto const text = open_checkpoint(other.file("text"));
  EXPECT_EQ(text->family, "qwen3_5_moe_text");
  EXPECT_EQ(text->hf.headers, HeaderOrigin::source);
  EXPECT_TRUE(names_of(*text).contains("model.norm.weight"));
  auto const whole = open_checkpoint(other.file("text"), {.text_only = false});
  EXPECT_TRUE(names_of(*whole).contains("model.language_model.norm.weight"));
  EXPECT_EQ(whole->fingerprint, text->fingerprint);
}

}  // namespace
}  // namespace rankslice
