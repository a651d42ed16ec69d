#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "synth/config_json.hpp"
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

std::vector<std::string> names_of_files(std::string_view family) {
  std::vector<std::string> names;
  for (auto const& file : side_files(find_preset(family, "tiny").model)) {
    names.push_back(file.name);
    EXPECT_FALSE(file.text.empty()) << file.name;
  }
  return names;
}

TEST(SideFiles, AreThoseOfAHubRepository) {
  EXPECT_THAT(names_of_files("qwen3_5_moe"),
              UnorderedElementsAre(".gitattributes", "LICENSE", "README.md", "chat_template.jinja", "config.json",
                                   "generation_config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json",
                                   "tokenizer_config.json", "vocab.json"));
  EXPECT_THAT(names_of_files("qwen3_vl_moe"),
              UnorderedElementsAre(".gitattributes", "README.md", "chat_template.json", "config.json",
                                   "generation_config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json",
                                   "tokenizer_config.json", "video_preprocessor_config.json", "vocab.json"));
  for (auto const* family : {"qwen3_moe", "qwen3_next"}) {
    EXPECT_THAT(names_of_files(family),
                UnorderedElementsAre(".gitattributes", "LICENSE", "README.md", "chat_template.jinja", "config.json",
                                     "generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                                     "vocab.json"));
  }
}

ModelDims dims_of_qwen3_5() {
  return {.hidden = 20,
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
}

ModelDims dims_of_qwen3_vl() {
  return {
      .hidden = 20,
      .intermediate = 21,
      .experts = 23,
      .experts_per_token = 3,
      .layers = 5,
      .vocab = 24,
      .heads = 25,
      .kv_heads = 26,
      .head_dim = 128,
      .vision = {
          .depth = 30, .hidden = 31, .intermediate = 32, .heads = 33, .positions = 36, .deepstack_blocks = {4, 5, 6}}};
}

void expect_fields(json const& config, json const& expected) {
  for (auto const& [field, value] : expected.items()) EXPECT_EQ(config.value(field, json("missing")), value) << field;
}

json const kTextFields{
    {"hidden_size", 20}, {"moe_intermediate_size", 21}, {"num_experts_per_tok", 3}, {"num_hidden_layers", 5},
    {"vocab_size", 24},  {"num_attention_heads", 25},   {"num_key_value_heads", 26}};

json const kVisionFields{{"depth", 30},      {"hidden_size", 31},       {"intermediate_size", 32},
                         {"num_heads", 33},  {"out_hidden_size", 20},   {"num_position_embeddings", 36},
                         {"patch_size", 16}, {"spatial_merge_size", 2}, {"temporal_patch_size", 2}};

TEST(ConfigJson, SaysWhatTheTensorsAre) {
  auto const config = json::parse(config_json({.dims = dims_of_qwen3_5()}));
  EXPECT_EQ(config.at("model_type"), "qwen3_5_moe");
  EXPECT_EQ(config.at("architectures"), json({"Qwen3_5MoeForConditionalGeneration"}));
  auto const& text = config["text_config"];
  expect_fields(text, kTextFields);
  expect_fields(text, {{"shared_expert_intermediate_size", 22},
                       {"num_experts", 23},
                       {"head_dim", 256},
                       {"linear_num_key_heads", 27},
                       {"linear_num_value_heads", 28},
                       {"linear_key_head_dim", 29},
                       {"linear_value_head_dim", 29},
                       {"linear_conv_kernel_dim", 6},
                       {"mtp_num_hidden_layers", 1},
                       {"model_type", "qwen3_5_moe_text"}});
  EXPECT_EQ(text["layer_types"],
            json({"linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"}));
  EXPECT_EQ(text["rope_parameters"]["mrope_section"], json({11, 11, 10}));
  expect_fields(config["vision_config"], kVisionFields);
}

TEST(ConfigJson, OfQwen3VlSaysWhatTheTensorsAre) {
  auto const config = json::parse(config_json({.family = SynthFamily::qwen3_vl_moe, .dims = dims_of_qwen3_vl()}));
  EXPECT_EQ(config.at("model_type"), "qwen3_vl_moe");
  EXPECT_EQ(config.at("architectures"), json({"Qwen3VLMoeForConditionalGeneration"}));
  auto const& text = config["text_config"];
  expect_fields(text, kTextFields);
  expect_fields(text, {{"num_experts", 23}, {"head_dim", 128}, {"model_type", "qwen3_vl_moe_text"}});
  EXPECT_EQ(text["rope_scaling"]["mrope_section"], json({24, 20, 20}));
  for (auto const* field : {"mtp_num_hidden_layers", "shared_expert_intermediate_size", "layer_types"}) {
    EXPECT_FALSE(text.contains(field)) << field;
  }
  expect_fields(config["vision_config"], kVisionFields);
  EXPECT_EQ(config["vision_config"]["deepstack_visual_indexes"], json({4, 5, 6}));
}

// Rule 61: E is `num_experts` on the Hub, `num_local_experts` in a VL config written by transformers.
TEST(ConfigJson, FromTransformersNamesTheExpertsAsItDoes) {
  auto const vl = json::parse(config_json(
      {.family = SynthFamily::qwen3_vl_moe, .dims = dims_of_qwen3_vl(), .layout = SynthLayout::transformers}));
  EXPECT_EQ(vl["text_config"].value("num_local_experts", 0), 23);
  EXPECT_FALSE(vl["text_config"].contains("num_experts"));
  auto const qwen3_5 = json::parse(config_json({.dims = dims_of_qwen3_5(), .layout = SynthLayout::transformers}));
  EXPECT_EQ(qwen3_5["text_config"].value("num_experts", 0), 23);
  EXPECT_FALSE(qwen3_5["text_config"].contains("mtp_num_hidden_layers"));
}

TEST(ConfigJson, OfATextModelIsThatOfItsDecoder) {
  SynthModel model{.dims = dims_of_qwen3_5()};
  auto const whole = json::parse(config_json(model));
  model.text_only = true;
  auto const config = json::parse(config_json(model));
  expect_fields(config, whole["text_config"]);
  expect_fields(config, {{"model_type", "qwen3_5_moe_text"}, {"architectures", {"Qwen3_5MoeForCausalLM"}}});
  EXPECT_FALSE(config.contains("text_config"));
  EXPECT_FALSE(config.contains("vision_config"));
}

TEST(ConfigJson, OfQwen3MoeSaysWhatTheTensorsAre) {
  auto const config = json::parse(config_json({.family = SynthFamily::qwen3_moe, .dims = dims_of_qwen3_vl()}));
  expect_fields(config, kTextFields);
  expect_fields(config, {{"model_type", "qwen3_moe"},
                         {"architectures", {"Qwen3MoeForCausalLM"}},
                         {"num_experts", 23},
                         {"head_dim", 128},
                         {"torch_dtype", "bfloat16"}});
}

TEST(ConfigJson, OfQwen3NextSaysWhatTheTensorsAre) {
  auto const config = json::parse(config_json({.family = SynthFamily::qwen3_next, .dims = dims_of_qwen3_5()}));
  expect_fields(config, kTextFields);
  expect_fields(config, {{"model_type", "qwen3_next"},
                         {"architectures", {"Qwen3NextForCausalLM"}},
                         {"num_experts", 23},
                         {"shared_expert_intermediate_size", 22},
                         {"linear_num_key_heads", 27},
                         {"linear_num_value_heads", 28},
                         {"full_attention_interval", 4}});
}

// As the FP8 releases have it: every module that is not in FP8, by its full name.
TEST(ConfigJson, OfFp8NamesWhatIsNotInFp8) {
  SynthModel model{.family = SynthFamily::qwen3_next, .dims = dims_of_qwen3_5()};
  EXPECT_FALSE(json::parse(config_json(model)).contains("quantization_config"));
  model.quantization = SynthQuantization::fp8;
  auto const quantization = json::parse(config_json(model)).at("quantization_config");
  expect_fields(
      quantization,
      {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}});
  auto const kept = quantization.at("modules_to_not_convert").get<std::vector<std::string>>();
  for (auto const* module :
       {"lm_head", "model.embed_tokens", "model.norm", "model.layers.0.input_layernorm",
        "model.layers.0.linear_attn.A_log", "model.layers.0.linear_attn.conv1d", "model.layers.0.linear_attn.dt_bias",
        "model.layers.0.linear_attn.in_proj_ba", "model.layers.0.linear_attn.norm", "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_expert_gate", "model.layers.3.self_attn.k_norm", "mtp.fc"}) {
    EXPECT_EQ(std::ranges::count(kept, module), 1) << module;
  }
  for (auto const& module : kept) {
    for (auto const* part : {"experts.", "shared_expert.", "q_proj", "o_proj", "out_proj", "qkvz", "scale_inv"}) {
      EXPECT_EQ(module.find(part), std::string::npos) << module;
    }
  }
}

TEST(Tokenizer, NumbersItsTokensWithoutHolesAndWithinTheVocabulary) {
  auto const files = tokenizer_files();
  auto const tokenizer = json::parse(text_of(files, "tokenizer.json"));
  std::vector<std::uint64_t> ids;
  for (auto const& [token, id] : tokenizer["model"]["vocab"].items()) ids.push_back(id);
  for (auto const& token : tokenizer["added_tokens"]) ids.push_back(token["id"]);
  std::ranges::sort(ids);
  for (std::size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(ids[i], i);
  for (auto const& preset : presets()) EXPECT_LT(ids.size(), preset.model.dims.vocab);
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
