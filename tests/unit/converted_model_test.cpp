#include "model/converted_model.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

#include "model/qwen3_5_moe.hpp"
#include "model/qwen3_moe.hpp"
#include "support/hand_model.hpp"
#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

using test::parameter_of;
using test::Qwen35Shape;
using test::tensor_of;
using test::tiny_qwen35;
using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::Not;

constexpr auto kGateUp = "model.language_model.layers.1.mlp.experts.gate_up_proj";
constexpr auto kDown = "model.language_model.layers.1.mlp.experts.down_proj";
constexpr auto kQuery = "model.language_model.layers.3.self_attn.q_proj.weight";
constexpr auto kDtBias = "model.language_model.layers.0.linear_attn.dt_bias";
constexpr auto kALog = "model.language_model.layers.0.linear_attn.A_log";

/// E = 4, H = 16, I = 8, each expert in tensors of its own.
Model split_model() {
  auto shape = tiny_qwen35();
  shape.experts_form = shape.mtp_form = ExpertForm::split;
  return test::make_model(shape);
}

/// The model as if weights were quantised: F8_E4M3, held in BF16, each followed by one F32 scale.
Model quantised(Model const& model, std::function<bool(std::string const&)> const& is_quantised) {
  Model result{.tensors = {}, .parameters = model.parameters};
  for (auto& parameter : result.parameters) parameter.tensors.clear();
  std::vector<std::uint32_t> place;
  for (auto tensor : model.tensors) {
    place.push_back(static_cast<std::uint32_t>(result.tensors.size()));
    auto& parameter = result.parameters[tensor.parameter];
    if (!is_quantised(tensor.key)) {
      result.tensors.push_back(tensor);
      continue;
    }
    tensor.dtype = parameter.hf_dtype = DType::F8_E4M3;
    tensor.scales = place.back() + 1;
    parameter.scale_bytes += 4;
    result.tensors.push_back(tensor);
    result.tensors.push_back({.key = tensor.key + "_scale_inv",
                              .dtype = DType::F32,
                              .shape = {1, 1},
                              .parameter = tensor.parameter,
                              .is_scales = true});
  }
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    for (auto const tensor : model.parameters[i].tensors) result.parameters[i].tensors.push_back(place[tensor]);
  }
  return result;
}

bool is_any_weight(std::string const& key) { return key.find("_proj.weight") != std::string::npos; }

std::vector<std::string> keys_of(Model const& model) {
  std::vector<std::string> keys;
  for (auto const& tensor : model.tensors) keys.push_back(tensor.key);
  return keys;
}

Model convert(Model const& source, Fp32HeldDtype fp32_held = Fp32HeldDtype::of_source) {
  return make_converted_model(qwen3_5_moe(), source, fp32_held).value();
}

/// What must hold of any model: tensors and parameters name each other, and fill each box once.
void expect_sound(Model const& model) {
  std::set<std::string> keys;
  for (auto const& tensor : model.tensors) EXPECT_TRUE(keys.insert(tensor.key).second) << tensor.key;
  std::size_t tensors = 0;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    std::uint64_t elements = 0;
    for (auto const tensor : parameter.tensors) {
      EXPECT_EQ(model.tensors[tensor].parameter, i);
      EXPECT_EQ(model.tensors[tensor].dtype, parameter.hf_dtype) << model.tensors[tensor].key;
      elements += element_count(model.tensors[tensor].shape);
    }
    EXPECT_EQ(elements, element_count(parameter.shape)) << parameter.fqn;
    tensors += parameter.tensors.size();
  }
  EXPECT_EQ(tensors, model.tensors.size());
}

// Rule 57: "preserve source dtype" is the default. What rule 55 alone widened needs no other headers.
TEST(ConvertedModel, Rule57_OfASourceInWhichNothingElseIsConvertedThereIsNone) {
  for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
    auto shape = tiny_qwen35();
    shape.experts_form = form;
    auto const model = test::make_model(shape);
    EXPECT_TRUE(parameter_of(model, kDtBias).converted());
    EXPECT_FALSE(make_converted_model(qwen3_5_moe(), model, Fp32HeldDtype::of_source));
    EXPECT_FALSE(converted_dtype(qwen3_5_moe(), model));
  }
}

// Rules 55, 57: upstream exports what training keeps in F32 as F32, and nothing else in another dtype.
TEST(ConvertedModel, Rule57_AsUpstreamOnlyTheDtypesOfGdnParametersChange) {
  auto const source = test::make_model(tiny_qwen35());
  auto const model = convert(source, Fp32HeldDtype::f32);
  expect_sound(model);
  ASSERT_EQ(model.tensors.size(), source.tensors.size());
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    auto const& key = source.tensors[i].key;
    EXPECT_EQ(model.tensors[i].key, key);
    EXPECT_EQ(model.tensors[i].shape, source.tensors[i].shape) << key;
    auto const is_held = key.find(".linear_attn.") != key.npos && (key.ends_with("A_log") || key.ends_with("dt_bias"));
    EXPECT_EQ(model.tensors[i].dtype, is_held ? DType::F32 : source.tensors[i].dtype) << key;
  }
  EXPECT_FALSE(converted_dtype(qwen3_5_moe(), source)) << "config.json says nothing of these";
}

// Rules 44, 46, 50: with quantization=False a split FP8 model exports grouped keys, [E, 2I, H] and [E, H, I].
TEST(ConvertedModel, Rule50_QuantisedSplitDecoderExpertsBecomeGrouped) {
  auto const source = quantised(split_model(), is_any_weight);
  auto const model = convert(source);
  expect_sound(model);
  EXPECT_EQ(tensor_of(model, kGateUp).shape, (Shape{4, 16, 16}));
  EXPECT_EQ(tensor_of(model, kDown).shape, (Shape{4, 16, 8}));
  for (auto const* key : {kGateUp, kDown}) {
    EXPECT_EQ(tensor_of(model, key).dtype, DType::BF16);
    EXPECT_EQ(tensor_of(model, key).experts, (Range{0, 4}));
    EXPECT_EQ(parameter_of(model, key).layout, Layout::swapped);
  }
  EXPECT_EQ(tensor_of(model, kGateUp).columns, (Range{0, 16}));
  auto const keys = keys_of(model);
  EXPECT_THAT(keys, Each(Not(HasSubstr("_scale_inv"))));
  EXPECT_THAT(keys, Not(Contains("model.language_model.layers.1.mlp.experts.0.gate_proj.weight")));
  EXPECT_EQ(tensor_of(model, kQuery).dtype, DType::BF16);
  EXPECT_EQ(converted_dtype(qwen3_5_moe(), source), DType::BF16);
}

// Rules 26, 50: releases leave whole layers unquantised (`modules_to_not_convert`), and a checkpoint has one form.
TEST(ConvertedModel, Rule26_DecoderExpertsAreGroupedInAllLayersOrInNone) {
  auto const all_grouped = keys_of(convert(quantised(split_model(), is_any_weight)));
  for (std::string const layer : {"0", "1", "3"}) {
    auto const some = ".layers." + layer + ".mlp.experts.";
    auto const of_layer = [&](std::string const& key) { return key.find("language_model" + some) != key.npos; };
    for (auto const& [is_quantised, what] :
         {std::pair<std::function<bool(std::string const&)>, char const*>{of_layer, "only this layer"},
          {[&](std::string const& key) { return is_any_weight(key) && !of_layer(key); }, "all but this layer"}}) {
      auto const model = convert(quantised(split_model(), is_quantised));
      expect_sound(model);
      EXPECT_EQ(keys_of(model), all_grouped) << what << ": " << layer;
    }
  }
  auto const only_mtp = [](std::string const& key) { return key.starts_with("mtp."); };
  EXPECT_EQ(keys_of(convert(quantised(split_model(), only_mtp))), keys_of(split_model())) << "a stack of its own";
}

// A family that exports experts one by one whenever it may choose does so here too.
TEST(ConvertedModel, QuantisedExpertsOfAFamilyWithoutGroupedExportsStaySplit) {
  std::string const module = "model.layers.0.mlp.experts";
  Model split;
  test::append_split(split, module, 4, 16, 8);
  auto const source = quantised(split, is_any_weight);
  auto const model = make_converted_model(qwen3_moe(), source, Fp32HeldDtype::of_source).value();
  expect_sound(model);
  EXPECT_EQ(keys_of(model), keys_of(split));
  EXPECT_EQ(tensor_of(model, module + ".3.up_proj.weight").dtype, DType::BF16);
}

// Rule 45: the form of the MTP experts is a matter of its own, whatever they are quantised to.
TEST(ConvertedModel, Rule45_SplitMtpExpertsStaySplit) {
  auto const source = quantised(split_model(), is_any_weight);
  auto const model = convert(source);
  for (auto const* projection : {"gate_proj", "up_proj", "down_proj"}) {
    auto const key = std::string("mtp.layers.0.mlp.experts.3.") + projection + ".weight";
    EXPECT_EQ(tensor_of(model, key).dtype, DType::BF16) << key;
    EXPECT_EQ(tensor_of(model, key).shape, tensor_of(source, key).shape) << key;
    EXPECT_EQ(tensor_of(model, key).columns, tensor_of(source, key).columns) << key;
  }
}

// Rule 5a: what transformers writes per expert without scales goes back per expert, in whichever dtype.
TEST(ConvertedModel, Rule5a_UnquantisedSplitExpertsStaySplitInAnotherDtype) {
  auto source = split_model();
  for (auto& parameter : source.parameters) {
    if (parameter.dtype == DType::BF16) parameter.dtype = DType::F16;
  }
  auto const model = convert(source);
  expect_sound(model);
  EXPECT_EQ(keys_of(model), keys_of(source));
  EXPECT_EQ(tensor_of(model, "model.language_model.layers.1.mlp.experts.2.up_proj.weight").dtype, DType::F16);
  EXPECT_EQ(tensor_of(model, kDtBias).dtype, DType::BF16) << "rule 57: the source's";
  EXPECT_EQ(tensor_of(model, kALog).dtype, DType::F32);
  EXPECT_EQ(converted_dtype(qwen3_5_moe(), source), DType::F16);
}

// States, plans and digests know parameters by their numbers.
TEST(ConvertedModel, ParametersKeepNumbersNamesShapesAndDtypes) {
  auto const source = quantised(split_model(), is_any_weight);
  auto const model = convert(source);
  ASSERT_EQ(model.parameters.size(), source.parameters.size());
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    EXPECT_EQ(model.parameters[i].fqn, source.parameters[i].fqn);
    EXPECT_EQ(model.parameters[i].shape, source.parameters[i].shape);
    EXPECT_EQ(model.parameters[i].dtype, source.parameters[i].dtype);
    EXPECT_EQ(model.parameters[i].scale_bytes, 0U);
    EXPECT_TRUE(model.parameters[i].invertible()) << model.parameters[i].fqn;
  }
}

// Keys keep the spelling that their source has: here without `model.`, without `language_model.`, or with neither.
TEST(ConvertedModel, GroupedKeysAreSpelledAsTheSplitOnes) {
  for (std::string const prefix : {"model.language_model.", "model.", "language_model.", ""}) {
    auto source = quantised(split_model(), is_any_weight);
    for (auto& tensor : source.tensors) {
      constexpr std::string_view full = "model.language_model.";
      if (tensor.key.starts_with(full)) tensor.key.replace(0, full.size(), prefix);
    }
    EXPECT_THAT(keys_of(convert(source)), Contains(prefix + "layers.0.mlp.experts.gate_up_proj"));
  }
}

TEST(ConvertedModel, KeysThatMeetAreRefused) {
  auto source = quantised(split_model(), is_any_weight);
  source.tensors[source.parameters.front().tensors.front()].key = kDown;
  try {
    (void)convert(source);
    FAIL() << "two tensors have one key";
  } catch (FormatError const& error) {
    EXPECT_THAT(error.what(), HasSubstr(kDown));
  }
}

}  // namespace
}  // namespace rankslice
