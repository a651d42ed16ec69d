// Which tensors are block scales, whose they are, and what is refused when they do not fit (rules 4, 33, 37, 40, 58,
// 60).

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "model/map_tensors.hpp"
#include "model/qwen3_5_moe.hpp"
#include "support/model_catalog.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::append_tensor;
using test::make_config;
using test::tensor_named;
using testing::HasSubstr;

std::string const kDecoder = "model.language_model.layers.2.mlp.experts.";
std::string const kMtp = "mtp.layers.0.mlp.experts.";

// E = 4, H = 200, I = 130: two blocks along each axis, the second one in part.
test::Qwen35Shape wide(ExpertForm mtp = ExpertForm::split) {
  auto shape = test::tiny_qwen35();
  shape.hidden = 200;
  shape.intermediate = 130;
  shape.experts_form = ExpertForm::split;
  shape.mtp_form = mtp;
  return shape;
}

Shape blocks_of(Shape shape) {
  for (auto axis = shape.end() - 2; axis != shape.end(); ++axis) *axis = *axis / 128 + (*axis % 128 != 0 ? 1 : 0);
  return shape;
}

void quantise(TensorCatalog& catalog, std::string const& key) {
  auto& weight = tensor_named(catalog, key);
  weight.dtype = DType::F8_E4M3;
  auto const scales = blocks_of(weight.shape);
  append_tensor(catalog, key + "_scale_inv", DType::BF16, scales);
}

bool is_decoder_expert(std::string const& key) {
  return key.find("mtp.") == std::string::npos && key.find(".mlp.experts.") != std::string::npos;
}

// As the Hub's block-FP8 releases: all split experts of the decoder.
TensorCatalog quantised(test::Qwen35Shape const& shape) {
  auto catalog = test::make_catalog(shape);
  std::vector<std::string> keys;
  for (auto const& tensor : catalog.tensors) {
    if (is_decoder_expert(tensor.name)) keys.push_back(tensor.name);
  }
  for (auto const& key : keys) quantise(catalog, key);
  return catalog;
}

Model mapped(TensorCatalog const& catalog, MapOptions const& options = {}, std::optional<DType> said = {}) {
  auto config = make_config(wide());
  config.dtype = said;
  std::vector<std::string> warnings;
  return map_tensors(qwen3_5_moe(), catalog, config, options, warnings);
}

test::Refusal refusal(std::function<void(TensorCatalog&)> const& spoil, TensorCatalog catalog = quantised(wide())) {
  spoil(catalog);
  return test::refusal_of([&] { (void)mapped(catalog); });
}

TEST(BlockScales, Rules4And33_ExpertsOfTheDecoderHaveTheirsInEverySpelling) {
  for (std::string const prefix : {"model.language_model.", "language_model.", "model.", ""}) {
    auto catalog = quantised(wide());
    std::string const from = "model.language_model.";
    for (auto& tensor : catalog.tensors) {
      if (is_decoder_expert(tensor.name)) tensor.name.replace(0, from.size(), prefix);
    }
    auto const model = mapped(catalog);
    auto const at = prefix + "layers.2.mlp.experts.3.";
    auto const& up = test::tensor_of(model, at + "up_proj.weight");
    ASSERT_TRUE(up.scales) << prefix;
    auto const& scales = model.tensors[*up.scales];
    EXPECT_EQ(scales.key, at + "up_proj.weight_scale_inv");
    EXPECT_EQ(scales.shape, (Shape{2, 2}));
    EXPECT_TRUE(scales.is_scales);
    EXPECT_EQ(scales.experts, (Range{3, 4}));
    auto const& gate_up = model.parameters[up.parameter];
    EXPECT_EQ(gate_up.fqn, kDecoder + "gate_and_up_projs");
    EXPECT_EQ(gate_up.shape, (Shape{4, 200, 260}));
    EXPECT_EQ(gate_up.hf_dtype, DType::F8_E4M3);
    EXPECT_EQ(gate_up.tensors.size(), 2U * 4) << "scales fill nothing themselves";
    EXPECT_EQ(gate_up.scale_bytes, 2U * 4 * 4 * 2);
  }
}

TEST(BlockScales, Rule58_ValuesAreHeldAsAskedElseAsConfigJsonSaysElseInBf16) {
  auto const dtype = [](Model const& model) {
    return test::parameter_of(model, kDecoder + "0.down_proj.weight").dtype;
  };
  auto const catalog = quantised(wide());
  EXPECT_EQ(dtype(mapped(catalog)), DType::BF16);
  EXPECT_EQ(dtype(mapped(catalog, {}, DType::F16)), DType::F16);
  EXPECT_EQ(dtype(mapped(catalog, {.dtype = DType::F32}, DType::F16)), DType::F32);
}

TEST(BlockScales, Rule58_AnotherShapeIsRefusedInUpstreamsWords) {
  auto const key = kDecoder + "1.gate_proj.weight_scale_inv";
  for (auto const& shape : {Shape{1, 2}, Shape{2, 1}, Shape{2, 3}, Shape{2, 2, 1}, Shape{4}, Shape{}}) {
    auto const refused = refusal([&](auto& catalog) { tensor_named(catalog, key).shape = shape; });
    EXPECT_EQ(refused.message, fmt::format("model.safetensors: {}: FP8 scale shape {} does not match weight shape "
                                           "[130, 200] (expected [2, 2])",
                                           key, to_string(shape)));
    EXPECT_EQ(refused.tensor, key);
    EXPECT_EQ(refused.code, ExitCode::bad_data);
  }
}

TEST(BlockScales, Rule40_AMissingWeightOrScaleIsNamedByLayerExpertAndProjection) {
  for (std::string const projection : {"gate_proj", "up_proj", "down_proj"}) {
    auto const key = kDecoder + "1." + projection + ".weight";
    auto const words = "Missing FP8 " + projection + " weight/scale for layer 2, expert 1";
    for (auto const& missing :
         {std::vector{key}, std::vector{key + "_scale_inv"}, std::vector{key, key + "_scale_inv"}}) {
      auto const refused = refusal([&](auto& catalog) {
        for (auto const& name : missing) test::remove_tensor(catalog, name);
      });
      EXPECT_THAT(refused.message, HasSubstr(words)) << missing.size() << " " << missing.front();
      EXPECT_THAT(refused.message, HasSubstr(key));
      EXPECT_EQ(refused.code, ExitCode::bad_data);
    }
  }
}

TEST(BlockScales, Rule26_QuantisedAndGroupedExpertsOfTheDecoderAreNotInOneCheckpoint) {
  auto const refused = refusal([](auto& catalog) {
    append_tensor(catalog, kDecoder + "gate_up_proj", DType::BF16, {4, 260, 200});
  });
  EXPECT_THAT(refused.message, HasSubstr("decoder expert keys; cannot infer one layout"));
}

// What the official releases quantise besides; upstream drops these scales and keeps the codes.
TEST(BlockScales, Rules37And60_AreNeverDropped) {
  std::vector<std::string> const keys{
      "model.language_model.layers.3.self_attn.q_proj.weight",
      "model.language_model.layers.3.self_attn.o_proj.weight",
      "model.language_model.layers.0.linear_attn.in_proj_qkv.weight",
      "model.language_model.layers.0.linear_attn.out_proj.weight",
      "model.language_model.layers.0.mlp.shared_expert.gate_proj.weight",
      "model.language_model.layers.0.mlp.shared_expert.down_proj.weight",
      "mtp.fc.weight",
      "mtp.layers.0.self_attn.q_proj.weight",
      "mtp.layers.0.mlp.shared_expert.up_proj.weight",
  };
  auto catalog = quantised(wide());
  for (auto const& key : keys) quantise(catalog, key);
  auto const model = mapped(catalog);
  for (auto const& key : keys) {
    auto const& weight = test::tensor_of(model, key);
    ASSERT_TRUE(weight.scales) << key;
    EXPECT_EQ(model.tensors[*weight.scales].key, key + "_scale_inv");
    auto const& parameter = model.parameters[weight.parameter];
    EXPECT_EQ(parameter.dtype, DType::BF16) << key;
    EXPECT_FALSE(parameter.invertible()) << key;
    auto const bare = refusal([&](auto& changed) { test::remove_tensor(changed, key + "_scale_inv"); }, catalog);
    EXPECT_THAT(bare.message, HasSubstr(key + ": Missing FP8 scale")) << key;
    auto const orphan = refusal([&](auto& changed) { test::remove_tensor(changed, key); }, catalog);
    EXPECT_EQ(orphan.tensor, key + "_scale_inv");
    EXPECT_EQ(orphan.code, ExitCode::bad_data);
  }
}

// Whatever its name: bits of other types that nobody computes with stay as they are.
TEST(BlockScales, Rule60_NoTensorOfAnEightBitFloatIsWithoutScales) {
  for (std::string const key : {"model.language_model.layers.3.self_attn.q_proj.bias",
                                "model.language_model.layers.3.self_attn.codes", "model.visual.pos_embed"}) {
    auto const with = [&](DType dtype) {
      return [&key, dtype](auto& catalog) { append_tensor(catalog, key, dtype, {130, 130}); };
    };
    auto const bare = refusal(with(DType::F8_E4M3));
    EXPECT_EQ(bare.message,
              "model.safetensors: " + key + ": Missing FP8 scale: expected " + key + "_scale_inv beside it");
    EXPECT_EQ(bare.tensor, key);
    for (auto const dtype : {DType::F8_E5M2, DType::F8_E8M0, DType::F8_E4M3FNUZ, DType::F8_E5M2FNUZ}) {
      EXPECT_THAT(refusal(with(dtype)).message, HasSubstr(key + ": has dtype " + std::string(name(dtype))));
    }
    for (auto const dtype : {DType::U8, DType::I8, DType::BOOL, DType::BF16}) {
      auto catalog = quantised(wide());
      with(dtype)(catalog);
      auto const model = mapped(catalog);
      auto const& buffer = test::tensor_of(model, key);
      EXPECT_EQ(buffer.dtype, dtype);
      EXPECT_FALSE(model.parameters[buffer.parameter].converted());
    }
  }
}

TEST(BlockScales, Rule60_ExpertsOfMtpHaveTheirsInBothForms) {
  for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
    auto catalog = quantised(wide(form));
    std::vector<std::string> keys;
    for (auto const& tensor : catalog.tensors) {
      if (tensor.name.starts_with(kMtp)) keys.push_back(tensor.name);
    }
    for (auto const& key : keys) quantise(catalog, key);
    auto const model = mapped(catalog);
    for (auto const& key : keys) {
      auto const& weight = test::tensor_of(model, key);
      ASSERT_TRUE(weight.scales) << key;
      EXPECT_EQ(model.tensors[*weight.scales].shape, blocks_of(weight.shape)) << key;
      auto const bare = refusal([&](auto& changed) { test::remove_tensor(changed, key + "_scale_inv"); }, catalog);
      EXPECT_THAT(bare.message, HasSubstr("Missing FP8 scale for MTP expert weight " + key));
    }
  }
}

TEST(BlockScales, Rule58_AWarningSaysWhatADoubtfulDtypeIsTakenFor) {
  auto const warnings_of = [](TensorCatalog const& catalog, std::optional<DType> requested) {
    auto config = make_config(wide());
    config.dtype_doubt = "dtype \"bf17\"";
    std::vector<std::string> warnings;
    (void)map_tensors(qwen3_5_moe(), catalog, config, {.dtype = requested}, warnings);
    return warnings;
  };
  EXPECT_THAT(warnings_of(quantised(wide()), {}),
              testing::ElementsAre("config.json: found dtype \"bf17\": quantised weights become BF16"));
  EXPECT_THAT(warnings_of(quantised(wide()), DType::F16), testing::IsEmpty()) << "somebody else has said it";
  EXPECT_THAT(warnings_of(test::make_catalog(wide()), {}), testing::IsEmpty()) << "nothing depends on it";
}

TEST(BlockScales, OneOfAnotherDtypeIsNamedThoughItIsTheFirst) {
  auto const scale = kDecoder + "0.gate_proj.weight_scale_inv";
  auto const refused = refusal([&](auto& catalog) { tensor_named(catalog, scale).dtype = DType::F32; });
  EXPECT_EQ(refused.message, "model.safetensors: " + scale + ": expected BF16 as in " + kDecoder +
                                 "0.up_proj.weight_scale_inv, found F32");
  auto const weight = kDecoder + "0.gate_proj.weight";
  auto const unquantised = refusal([&](auto& catalog) {
    test::remove_tensor(catalog, scale);
    tensor_named(catalog, weight).dtype = DType::BF16;
  });
  EXPECT_EQ(unquantised.message,
            "model.safetensors: " + weight + ": expected F8_E4M3 as in " + kDecoder + "0.up_proj.weight, found BF16");
}

}  // namespace
}  // namespace rankslice
