// Which keys a checkpoint has, and so how it stores its experts, is told by its index and headers and by nothing else.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "support/model_catalog.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr auto kIndex = "/model.safetensors.index.json";

class CheckpointKeys : public testing::Test {
 protected:
  [[nodiscard]] std::string path(std::string const& name) const { return dir_.file(name); }

  /// A checkpoint with the experts of MTP in a form, in a config.json that may say something else.
  void write(std::string const& name, ExpertForm mtp, Json const& said = {}) const {
    auto shape = test::tiny_qwen35();
    shape.mtp_form = mtp;
    auto config = Json::parse(test::make_config_json(shape));
    for (auto const& [field, value] : said.items()) {
      config[field] = value;
      config["text_config"][field] = value;
    }
    test::write_checkpoint(path(name), test::make_catalog(shape), config.dump());
  }

  [[nodiscard]] std::vector<std::string> keys(std::string const& name) const {
    auto const checkpoint = open_checkpoint(path(name));
    std::vector<std::string> keys;
    for (auto const& tensor : checkpoint->model.tensors) keys.push_back(tensor.key);
    std::ranges::sort(keys);
    return keys;
  }

  [[nodiscard]] ExpertForm mtp_form(std::string const& name) const {
    auto const found = keys(name);
    auto const grouped = std::ranges::count(found, "mtp.layers.0.mlp.experts.gate_up_proj");
    auto const split = std::ranges::count(found, "mtp.layers.0.mlp.experts.3.up_proj.weight");
    EXPECT_EQ(grouped + split, 1) << name;
    return split != 0 ? ExpertForm::split : ExpertForm::grouped;
  }

  test::TempDir dir_;
};

// Upstream takes the first of these names for split experts and the others for grouped ones; the Hub's 397B is split.
TEST_F(CheckpointKeys, Rules28And30_TheNameOfAModelSaysNothingOfItsLayout) {
  for (std::string const name : {"Qwen3.5-35B-A3B", "Qwen3.6-35B-A3B", "Qwen3.5-122B-A10B", "Qwen3.5-397B-A17B"}) {
    for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
      write(name, form, {{"_name_or_path", "Qwen/" + name}, {"name_or_path", name}});
      EXPECT_EQ(mtp_form(name), form) << name;
      fs::remove_all(path(name));
    }
  }
}

TEST_F(CheckpointKeys, Rules28And30_WhatConfigJsonSaysOfTheLayoutOfMtpSaysNothingOfTheFiles) {
  for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
    for (std::string const said : {"grouped", "per_expert", "nonsense"}) {
      write(said, form, {{"mtp_expert_hf_layout", said}});
      EXPECT_EQ(mtp_form(said), form) << said;
      fs::remove_all(path(said));
    }
  }
}

// Upstream looks into folders that the config names when it is to make keys up.
TEST_F(CheckpointKeys, Rules26And29_OnlyTheFolderThatIsOpenedGivesKeys) {
  write("split", ExpertForm::split);
  write("grouped", ExpertForm::grouped, {{"_name_or_path", path("split")}, {"name_or_path", path("split")}});
  EXPECT_EQ(mtp_form("grouped"), ExpertForm::grouped);
}

TEST_F(CheckpointKeys, Rule29_WithoutAnIndexTheHeadersOfAllFilesGiveThem) {
  for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
    auto const name = std::string(rankslice::name(form));
    write(name, form);
    auto const by_index = keys(name);
    fs::remove(path(name) + kIndex);
    EXPECT_EQ(keys(name), by_index);
    EXPECT_EQ(mtp_form(name), form);
  }
}

// Upstream skips what it cannot read, and goes on with fewer keys.
TEST_F(CheckpointKeys, Rule29_AnIndexOrHeaderThatCannotBeReadIsAnErrorThatNamesIt) {
  write("checkpoint", ExpertForm::split);
  auto const opened = [&] { (void)open_checkpoint(path("checkpoint")); };
  test::write_file(path("checkpoint") + kIndex, test::bytes_of("{"));
  EXPECT_THAT(test::refusal_of(opened).message, HasSubstr("model.safetensors.index.json"));
  fs::remove(path("checkpoint") + kIndex);
  test::write_file(path("checkpoint") + "/model-00002-of-00002.safetensors", test::raw_header("{"));
  EXPECT_THAT(test::refusal_of(opened).message, HasSubstr("model-00002-of-00002.safetensors"));
}

}  // namespace
}  // namespace rankslice
