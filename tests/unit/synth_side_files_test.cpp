#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "synth/presets.hpp"
#include "synth/side_files.hpp"
#include "synth/tokenizer.hpp"

namespace rankslice {
namespace {

using nlohmann::json;
using testing::UnorderedElementsAre;

std::string text_of(std::vector<TextFile> const& files, std::string const& name) {
  for (auto const& file : files) {
    if (file.name == name) return file.text;
  }
  return {};
}

TEST(SideFiles, AreThoseOfAHubRepository) {
  std::vector<std::string> names;
  for (auto const& file : side_files(find_preset("tiny").dims)) {
    names.push_back(file.name);
    EXPECT_FALSE(file.text.empty()) << file.name;
  }
  EXPECT_THAT(names,
              UnorderedElementsAre(".gitattributes", "LICENSE", "README.md", "chat_template.jinja", "config.json",
                                   "generation_config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json",
                                   "tokenizer_config.json", "vocab.json"));
}

TEST(ConfigJson, SaysWhatTheTensorsAre) {
  Qwen35MoeDims const dims{.hidden = 20,
                           .intermediate = 21,
                           .shared_intermediate = 22,
                           .experts = 23,
                           .experts_per_token = 3,
                           .layers = 5,
                           .vocab = 24,
                           .heads = 25,
                           .kv_heads = 26,
                           .head_dim = 256,
                           .linear_key_heads = 27,
                           .linear_value_heads = 28,
                           .linear_head_dim = 29,
                           .conv_kernel = 6,
                           .vision = {.depth = 30, .hidden = 31, .intermediate = 32, .heads = 33, .positions = 36}};
  auto const config = json::parse(config_json(dims));
  EXPECT_EQ(config.at("model_type"), "qwen3_5_moe");
  EXPECT_EQ(config.at("architectures"), json({"Qwen3_5MoeForConditionalGeneration"}));

  json const expected_text{{"hidden_size", 20},
                           {"moe_intermediate_size", 21},
                           {"shared_expert_intermediate_size", 22},
                           {"num_experts", 23},
                           {"num_experts_per_tok", 3},
                           {"num_hidden_layers", 5},
                           {"vocab_size", 24},
                           {"num_attention_heads", 25},
                           {"num_key_value_heads", 26},
                           {"head_dim", 256},
                           {"linear_num_key_heads", 27},
                           {"linear_num_value_heads", 28},
                           {"linear_key_head_dim", 29},
                           {"linear_value_head_dim", 29},
                           {"linear_conv_kernel_dim", 6},
                           {"mtp_num_hidden_layers", 1},
                           {"model_type", "qwen3_5_moe_text"}};
  for (auto const& [field, value] : expected_text.items()) EXPECT_EQ(config["text_config"][field], value) << field;
  EXPECT_EQ(config["text_config"]["layer_types"],
            json({"linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"}));
  EXPECT_EQ(config["text_config"]["rope_parameters"]["mrope_section"], json({11, 11, 10}));

  json const expected_vision{{"depth", 30},      {"hidden_size", 31},       {"intermediate_size", 32},
                             {"num_heads", 33},  {"out_hidden_size", 20},   {"num_position_embeddings", 36},
                             {"patch_size", 16}, {"spatial_merge_size", 2}, {"temporal_patch_size", 2}};
  for (auto const& [field, value] : expected_vision.items()) EXPECT_EQ(config["vision_config"][field], value) << field;
}

TEST(Tokenizer, NumbersItsTokensWithoutHolesAndWithinTheVocabulary) {
  auto const files = tokenizer_files();
  auto const tokenizer = json::parse(text_of(files, "tokenizer.json"));
  std::vector<std::uint64_t> ids;
  for (auto const& [token, id] : tokenizer["model"]["vocab"].items()) ids.push_back(id);
  for (auto const& token : tokenizer["added_tokens"]) ids.push_back(token["id"]);
  std::ranges::sort(ids);
  for (std::size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(ids[i], i);
  for (auto const& preset : presets()) EXPECT_LT(ids.size(), preset.dims.vocab);
}

TEST(Tokenizer, IsTheSameInAllItsFiles) {
  auto const files = tokenizer_files();
  auto const tokenizer = json::parse(text_of(files, "tokenizer.json"));
  EXPECT_EQ(json::parse(text_of(files, "vocab.json")), tokenizer["model"]["vocab"]);
  EXPECT_EQ(text_of(files, "merges.txt"), "#version: 0.2\nĠ t\nh e\nĠt he\n");
  auto const config = json::parse(text_of(files, "tokenizer_config.json"));
  for (auto const& token : tokenizer["added_tokens"]) {
    auto const id = token["id"].get<std::uint64_t>();
    EXPECT_EQ(config["added_tokens_decoder"][std::to_string(id)]["content"], token["content"]);
    EXPECT_EQ(special_token_id(token["content"].get<std::string>()), id);
  }
}

}  // namespace
}  // namespace rankslice
