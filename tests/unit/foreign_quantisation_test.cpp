// Which quantisations are refused by name, and what of them is carried with a warning.

#include "model/foreign_quantisation.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/model_catalog.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::append_tensor;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string const kQuery = "model.language_model.layers.3.self_attn.q_proj";

TensorCatalog tiny() { return test::make_catalog(test::tiny_qwen35()); }

ModelConfig config_of(std::string_view json) { return parse_model_config(std::as_bytes(std::span(json))); }

test::Refusal refusal(TensorCatalog const& catalog, ModelConfig const& config = {}) {
  std::vector<std::string> warnings;
  return test::refusal_of([&] { refuse_foreign_quantisation(catalog, config, warnings); });
}

std::vector<std::string> warnings_of(TensorCatalog const& catalog, ModelConfig const& config = {}) {
  std::vector<std::string> warnings;
  refuse_foreign_quantisation(catalog, config, warnings);
  return warnings;
}

TEST(ForeignQuantisation, UnquantisedTensorsAndBlockFp8AreNoConcern) {
  EXPECT_THAT(warnings_of(tiny(), config_of("{}")), IsEmpty());
  auto catalog = tiny();
  append_tensor(catalog, kQuery + ".weight_scale_inv", DType::BF16, {1, 1});
  EXPECT_THAT(warnings_of(catalog, config_of(R"({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                            "activation_scheme": "dynamic", "weight_block_size": [128, 128]}})")),
              IsEmpty());
}

TEST(ForeignQuantisation, TheFieldsOfConfigJsonAreNamedWithTheirMethod) {
  std::string const rest = " is not supported; there is only fp8 (e4m3) with scales for blocks of 128 × 128";
  for (auto const& [json, found] : {
           std::pair{R"({"compression_config": {"quant_method": "compressed-tensors"}})",
                     "compression_config: quant_method compressed-tensors"},
           std::pair{R"({"text_config": {"compression_config": {"quant_method": "compressed-tensors"}}})",
                     "compression_config: quant_method compressed-tensors"},
           std::pair{R"({"compression_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})",
                     "compression_config: quant_method fp8"},
           std::pair{R"({"quantization_config": {"quant_method": null, "bits": 4}})",
                     "quantization_config: quantisation without a quant_method"},
           std::pair{R"({"quantization_config": {"load_in_4bit": true}})",
                     "quantization_config: quantisation without a quant_method"},
           std::pair{R"({"quantization_config": {"quant_method": "gptq"}})", "quantization_config: quant_method gptq"},
       }) {
    auto const refused = refusal(tiny(), config_of(json));
    EXPECT_EQ(refused.message, fmt::format("config.json: {}{}", found, rest)) << json;
    EXPECT_EQ(refused.file, "config.json");
    EXPECT_EQ(refused.code, ExitCode::bad_data);
  }
}

TEST(ForeignQuantisation, ScalesOfWholeWeightsAreNamedWhateverTheirWeightIs) {
  std::string const experts = "model.language_model.layers.0.mlp.experts.gate_up_proj";
  for (auto const& scale : {kQuery + ".weight_scale", kQuery + "_scale", experts + "_scale"}) {
    for (auto const weight : {DType::F8_E4M3, DType::BF16, DType::U8}) {
      for (auto const dtype : {DType::F32, DType::BF16, DType::F8_E4M3, DType::U8}) {
        auto catalog = tiny();
        test::tensor_named(catalog, kQuery + ".weight").dtype = weight;
        append_tensor(catalog, scale, dtype, {1});
        auto const refused = refusal(catalog);
        EXPECT_EQ(refused.message,
                  "model.safetensors: " + scale +
                      ": is a weight's scale per tensor, channel or group, as compressed-tensors and modelopt write "
                      "it, which is not supported; there is only FP8 with scales for blocks of 128 × 128 "
                      "(…_scale_inv)");
        EXPECT_EQ(refused.tensor, scale);
        EXPECT_EQ(refused.code, ExitCode::bad_data);
      }
    }
  }
}

TEST(ForeignQuantisation, TensorsOfOtherMethodsAreNamedWithTheMostTellingOne) {
  for (auto const& [ending, method] : {
           std::pair{".qweight", "GPTQ or AWQ"},
           std::pair{".weight_packed", "compressed-tensors"},
           std::pair{".weight_zero_point", "compressed-tensors"},
           std::pair{".weight_scale_2", "NVFP4"},
           std::pair{".weight_global_scale", "NVFP4"},
           std::pair{"_proj_blocks", "MXFP4"},
           std::pair{".weight.absmax", "bitsandbytes"},
           std::pair{".SCB", "bitsandbytes"},
       }) {
    auto catalog = tiny();
    append_tensor(catalog, kQuery + ".weight_scale", DType::F8_E4M3, {16, 1});
    append_tensor(catalog, kQuery + ending, DType::U8, {16});
    auto const refused = refusal(catalog);
    EXPECT_EQ(refused.tensor, kQuery + ending);
    EXPECT_THAT(refused.message, HasSubstr(fmt::format("is of {} quantisation, which is not supported", method)));
  }
}

TEST(ForeignQuantisation, ScalesOfActivationsAndOfTheCacheAreCarriedWithAWarning) {
  for (auto const* ending : {".input_scale", ".weight_activation_scale", ".k_scale", ".v_scale", ".input_zero_point"}) {
    auto catalog = tiny();
    append_tensor(catalog, kQuery + ending, DType::F32, {});
    EXPECT_THAT(warnings_of(catalog),
                ElementsAre("carried as they are and never applied: 1 scale of quantised activations or a quantised "
                            "cache (" +
                            kQuery + ending + ")"));
    append_tensor(catalog, "model.language_model.layers.3.self_attn.attn.q_scale", DType::F32, {});
    EXPECT_THAT(warnings_of(catalog), ElementsAre(AllOf(HasSubstr("2 scales"), HasSubstr(kQuery + ending + ", …"))));
  }
}

TEST(ForeignQuantisation, StaticScalesOfActivationsAreSaidToBeWithoutEffect) {
  auto const config = config_of(R"({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static",
                                                            "weight_block_size": [128, 128]}})");
  EXPECT_THAT(warnings_of(tiny(), config), ElementsAre(HasSubstr("activation_scheme static")));
}

TEST(ForeignQuantisation, ModeloptsFileCountsWhereWeightsLookQuantised) {
  ModelConfig config;
  config.modelopt_file = true;
  EXPECT_THAT(warnings_of(tiny(), config),
              ElementsAre("hf_quant_config.json speaks of modelopt quantisation, but no weight is quantised"));
  for (auto const dtype : {DType::F8_E4M3, DType::U8, DType::I8}) {
    auto catalog = tiny();
    test::tensor_named(catalog, kQuery + ".weight").dtype = dtype;
    auto const refused = refusal(catalog, config);
    EXPECT_EQ(refused.message, fmt::format("hf_quant_config.json: modelopt quantisation is not supported: {}.weight in "
                                           "model.safetensors is {}",
                                           kQuery, name(dtype)));
    EXPECT_EQ(refused.file, "hf_quant_config.json");
    EXPECT_EQ(refused.tensor, kQuery + ".weight");
    EXPECT_EQ(refused.code, ExitCode::bad_data);
  }
}

}  // namespace
}  // namespace rankslice
