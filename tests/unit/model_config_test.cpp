#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "rankslice/error.hpp"

#include "model/family.hpp"
#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

ModelConfig parse(std::string_view json) { return parse_model_config(std::as_bytes(std::span(json))); }

// What FormatError says of a config.json, or "accepted".
std::string refusal(std::string_view json) {
  try {
    (void)parse(json);
    return "accepted";
  } catch (FormatError const& error) {
    EXPECT_EQ(error.file, "config.json");
    return error.what();
  }
}

TEST(ModelConfig, IsReadFromTheTextConfigOfAHubCheckpoint) {
  auto const config = parse(R"({
    "architectures": ["Qwen3_5MoeForConditionalGeneration"], "image_token_id": 248056, "model_type": "qwen3_5_moe",
    "text_config": {"hidden_size": 2048, "layer_types": ["linear_attention"], "mlp_only_layers": [0, 39],
                    "model_type": "qwen3_5_moe_text", "moe_intermediate_size": 512, "mtp_num_hidden_layers": 1,
                    "num_experts": 256, "num_hidden_layers": 40, "rms_norm_eps": 1e-06},
    "vision_config": {"hidden_size": 1152, "depth": 27}})");
  EXPECT_EQ(config.model_type, "qwen3_5_moe");
  EXPECT_EQ(config.experts, 256U);
  EXPECT_EQ(config.hidden, 2048U);
  EXPECT_EQ(config.intermediate, 512U);
  EXPECT_EQ(config.layers, 40U);
  EXPECT_EQ(config.mtp_layers, 1U);
  EXPECT_THAT(config.dense_layers, ElementsAre(0U, 39U));
  EXPECT_EQ(config.quantisation.method, "");
}

TEST(ModelConfig, IsReadFromTheTopLevelOfATextOnlyModel) {
  auto const config = parse(R"({"model_type": "qwen3_5_moe_text", "num_experts": 8, "hidden_size": 64,
                                "moe_intermediate_size": 32, "num_hidden_layers": 4})");
  EXPECT_EQ(config.model_type, "qwen3_5_moe_text");
  EXPECT_EQ(config.experts, 8U);
  EXPECT_EQ(config.hidden, 64U);
  EXPECT_EQ(config.intermediate, 32U);
  EXPECT_EQ(config.layers, 4U);
}

TEST(ModelConfig, FieldsThatAreAbsentOrNullSayNothing) {
  for (auto const* json : {"{}", R"({"text_config": null, "quantization_config": null, "num_experts": null,
                                     "model_type": null, "mlp_only_layers": null})"}) {
    auto const config = parse(json);
    EXPECT_EQ(config.model_type, "");
    EXPECT_EQ(config.experts, 0U);
    EXPECT_EQ(config.hidden, 0U);
    EXPECT_EQ(config.intermediate, 0U);
    EXPECT_EQ(config.layers, 0U);
    EXPECT_EQ(config.mtp_layers, 0U);
    EXPECT_THAT(config.dense_layers, IsEmpty());
    EXPECT_EQ(config.quantisation.method, "");
  }
}

TEST(ModelConfig, Rule61_TheExpertsHaveTwoNames) {
  EXPECT_EQ(parse(R"({"num_local_experts": 8})").experts, 8U);
  EXPECT_EQ(parse(R"({"num_local_experts": 8})").experts_field, "num_local_experts");
  EXPECT_EQ(parse(R"({"num_experts": 8})").experts_field, "num_experts");
  EXPECT_EQ(parse(R"({"num_local_experts": 8, "num_experts": 8})").experts, 8U);
  EXPECT_THAT(refusal(R"({"num_local_experts": 8, "num_experts": 16})"),
              AllOf(HasSubstr("num_experts = 16"), HasSubstr("num_local_experts = 8")));
}

TEST(ModelConfig, Rule28_NamesTheLayoutOfTheMtpExperts) {
  EXPECT_EQ(parse(R"({"text_config": {"mtp_expert_hf_layout": "per_expert"}})").mtp_expert_layout, "per_expert");
  for (auto const* no_string : {"null", "1", "[]", "{}"}) {
    auto const json = fmt::format(R"({{"text_config": {{"mtp_expert_hf_layout": {}}}}})", no_string);
    EXPECT_EQ(parse(json).mtp_expert_layout, "") << no_string;
  }
}

TEST(ModelConfig, SaysWhichLayersHaveExperts) {
  EXPECT_EQ(parse("{}").sparse_step, 1U);
  EXPECT_EQ(parse(R"({"text_config": {"decoder_sparse_step": 2}})").sparse_step, 2U);
  EXPECT_THAT(refusal(R"({"decoder_sparse_step": 0})"), HasSubstr("decoder_sparse_step: expected at least 1"));
}

TEST(ModelConfig, NamesTheQuantisation) {
  for (auto const* json :
       {R"({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 64]}})",
        R"({"text_config": {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                               "weight_block_size": [128, 64]}}})"}) {
    auto const found = parse(json).quantisation;
    EXPECT_EQ(found.method, "fp8");
    EXPECT_EQ(found.format, "e4m3");
    EXPECT_EQ(found.block, (std::vector<std::uint64_t>{128, 64}));
  }
  EXPECT_EQ(parse(R"({"quantization_config": {}})").quantisation.method, "");
}

TEST(ModelConfig, KnowsTheDtypeOfTrainingOfTheTextModelFirst) {
  EXPECT_EQ(parse(R"({"torch_dtype": "float16"})").dtype, DType::F16);
  EXPECT_EQ(parse(R"({"dtype": "float16", "text_config": {"dtype": "bfloat16"}})").dtype, DType::BF16);
  EXPECT_EQ(parse(R"({"dtype": "float32", "text_config": {}})").dtype, DType::F32);
  EXPECT_EQ(parse(R"({"dtype": "auto"})").dtype, std::nullopt);
  EXPECT_EQ(parse(R"({"dtype": 16})").dtype, std::nullopt);
}

TEST(ModelConfig, BytesThatAreNoJsonObjectAreRefused) {
  for (auto const* json : {"", " ", "{", "{}x", "{\"a\": }", "\xff\xfe{}", "{\"a\": \"\xc3\x28\"}", "{'a': 1}"}) {
    EXPECT_EQ(refusal(json), "config.json: no valid JSON") << json;
  }
  for (auto const* json : {"[]", "1", "\"text\"", "null"}) {
    EXPECT_THAT(refusal(json), HasSubstr("expected an object, found ")) << json;
  }
}

TEST(ModelConfig, IsRefusedWhereOneReaderWouldTakeTheFirstOfTwoValuesAndAnotherTheLast) {
  EXPECT_EQ(refusal(R"({"num_experts": 8, "hidden_size": 4, "num_experts": 9})"),
            "config.json: num_experts is given twice");
  EXPECT_EQ(refusal(R"({"text_config": {"hidden_size": 4, "hidden_size": 4}})"),
            "config.json: hidden_size is given twice");
  EXPECT_EQ(parse(R"({"text_config": {"num_experts": 8}, "vision_config": {"num_experts": 1}})").experts, 8U);
}

TEST(ModelConfig, FieldsOfTheWrongTypeAreRefusedByName) {
  for (std::string const field : {"num_experts", "num_local_experts", "hidden_size", "moe_intermediate_size",
                                  "num_hidden_layers", "mtp_num_hidden_layers"}) {
    for (std::string const value :
         {"-1", "1.5", "256.0", "1e2", "\"8\"", "true", "[8]", "{}", "18446744073709551616"}) {
      EXPECT_THAT(refusal("{\"text_config\": {\"" + field + "\": " + value + "}}"),
                  HasSubstr(field + ": expected a whole number"))
          << value;
    }
  }
  EXPECT_THAT(refusal(R"({"model_type": 3})"), HasSubstr("model_type: expected a string, found number"));
  EXPECT_THAT(refusal(R"({"text_config": []})"), HasSubstr("text_config: expected an object, found array"));
  EXPECT_THAT(refusal(R"({"quantization_config": "fp8"})"), HasSubstr("quantization_config: expected an object"));
  EXPECT_THAT(refusal(R"({"quantization_config": {"quant_method": 8}})"), HasSubstr("quant_method: expected a string"));
  EXPECT_THAT(refusal(R"({"mlp_only_layers": 3})"), HasSubstr("mlp_only_layers: expected an array"));
  EXPECT_THAT(refusal(R"({"mlp_only_layers": [1, -2]})"), HasSubstr("mlp_only_layers: expected a whole number"));
}

TEST(ModelConfig, TheTestCatalogueDescribesItselfCorrectly) {
  auto const shape = test::tiny_qwen35();
  auto const config = parse(test::make_config_json(shape));
  auto const expected = test::make_config(shape);
  EXPECT_EQ(config.model_type, expected.model_type);
  EXPECT_EQ(config.experts, expected.experts);
  EXPECT_EQ(config.hidden, expected.hidden);
  EXPECT_EQ(config.intermediate, expected.intermediate);
  EXPECT_EQ(config.layers, expected.layers);
  EXPECT_EQ(config.mtp_layers, expected.mtp_layers);
}

ModelConfig of_type(std::string model_type) {
  ModelConfig config;
  config.model_type = std::move(model_type);
  return config;
}

TEST(FindFamily, AutoGoesByTheModelType) {
  EXPECT_EQ(find_family("auto", of_type("qwen3_5_moe")).name, "qwen3_5_moe");
  EXPECT_EQ(find_family("auto", of_type("qwen3_moe")).name, "qwen3_moe");
  EXPECT_EQ(find_family("auto", of_type("qwen3_next")).name, "qwen3_next");
  EXPECT_EQ(find_family("auto", of_type("qwen3_vl_moe")).name, "qwen3_vl_moe");
}

TEST(FindFamily, AutoRefusesAModelTypeWithoutATableAndNamesTheFamilies) {
  for (std::string const type : {"llama", "qwen3_omni_moe", "qwen3_5"}) {
    try {
      (void)find_family("auto", of_type(type));
      ADD_FAILURE() << type;
    } catch (FormatError const& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("model_type " + type + " "), HasSubstr("qwen3_5_moe")));
      EXPECT_EQ(error.file, "config.json");
    }
  }
}

TEST(FindFamily, AutoWithoutAModelTypeAsksForTheFamily) {
  try {
    (void)find_family("auto", {});
    ADD_FAILURE();
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), HasSubstr("--family"));
  }
}

TEST(FindFamily, ANameServesWhereConfigJsonSaysNothingOrTheSame) {
  EXPECT_EQ(find_family("qwen3_5_moe", {}).name, "qwen3_5_moe");
  EXPECT_EQ(find_family("qwen3_5_moe", of_type("qwen3_5_moe")).name, "qwen3_5_moe");
}

TEST(FindFamily, ANameThatContradictsConfigJsonIsRefused) {
  try {
    (void)find_family("qwen3_5_moe", of_type("qwen3_vl_moe"));
    ADD_FAILURE();
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("qwen3_vl_moe"), HasSubstr("qwen3_5_moe")));
  }
}

TEST(FindFamily, AnUnknownNameIsAUsageErrorThatListsTheNames) {
  for (std::string const name : {"mixtral", "", "Qwen3_5_moe"}) {
    try {
      (void)find_family(name, of_type("qwen3_5_moe"));
      ADD_FAILURE() << name;
    } catch (UsageError const& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr("unknown family " + name), HasSubstr("auto, qwen3_5_moe")));
    }
  }
}

TEST(FindFamily, EveryFamilyIsFoundByItsName) {
  ASSERT_FALSE(families().empty());
  for (auto const* family : families()) EXPECT_EQ(&find_family(family->name, {}), family);
}

TEST(ModelConfig, Rule28_TheFormsOfTheMtpExpertsHaveManyNames) {
  auto const form_of = [](std::string const& name) {
    ModelConfig config;
    config.mtp_expert_layout = name;
    return mtp_form(config);
  };
  for (auto const* name : {"split", "per-expert", "per_expert", "Per-Expert-Safetensors", "PER_EXPERT_SAFETENSORS"}) {
    EXPECT_EQ(form_of(name), ExpertForm::split) << name;
  }
  EXPECT_EQ(form_of(""), std::nullopt);
  for (auto const* name : {"grouped", "group", "GROUPED", "Group"}) {
    EXPECT_EQ(form_of(name), ExpertForm::grouped) << name;
  }
  for (std::string const name : {"splits", "per expert", "stacked", "grouped "}) {
    try {
      (void)form_of(name);
      ADD_FAILURE() << name;
    } catch (FormatError const& error) {
      EXPECT_EQ(error.file, "config.json");
      EXPECT_THAT(error.what(), HasSubstr("Unsupported MTP expert HF layout: '" + name + "'"));
    }
  }
}

TEST(ModelConfig, Rule58_OtherDtypesThanThoseOfTrainingLeaveADoubt) {
  struct Said {
    char const* json;
    std::optional<DType> dtype;
    char const* doubt;
  };
  for (auto const& [json, dtype, doubt] : {
           Said{R"({})", std::nullopt, ""},
           Said{R"({"dtype": null, "torch_dtype": "float16"})", DType::F16, ""},
           Said{R"({"dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16"}})", DType::BF16, ""},
           Said{R"({"dtype": "bf17"})", std::nullopt, R"(dtype "bf17")"},
           Said{R"({"torch_dtype": "float8_e4m3fn"})", std::nullopt, R"(torch_dtype "float8_e4m3fn")"},
           Said{R"({"dtype": 16})", std::nullopt, "dtype number"},
           Said{R"({"dtype": "bfloat16", "torch_dtype": "float16"})", DType::BF16,
                R"(dtype "bfloat16", torch_dtype "float16")"},
           Said{R"({"dtype": "float32", "text_config": {"dtype": "float16"}})", DType::F16,
                R"(text_config.dtype "float16", dtype "float32")"},
           Said{R"({"dtype": "bf17", "torch_dtype": "float16"})", DType::F16, R"(dtype "bf17", torch_dtype "float16")"},
       }) {
    auto const config = parse(json);
    EXPECT_EQ(config.dtype, dtype) << json;
    EXPECT_EQ(config.dtype_doubt, doubt) << json;
  }
}

}  // namespace
}  // namespace rankslice
