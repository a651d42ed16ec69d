#include "model/fresh_model.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "model/map_tensors.hpp"
#include "model/qwen3_5_moe.hpp"
#include "model/qwen3_vl_moe.hpp"
#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

using test::tiny_qwen35;
using test::tiny_qwen_vl;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<NativeTensor> natives_of(Model const& model) {
  std::vector<NativeTensor> natives;
  for (auto const& parameter : model.parameters) {
    natives.push_back({.fqn = parameter.fqn, .dtype = parameter.dtype, .shape = parameter.shape});
  }
  return natives;
}

std::vector<std::string> keys_of(Model const& model) {
  std::vector<std::string> keys;
  for (auto const& tensor : model.tensors) keys.push_back(tensor.key + " " + to_string(tensor.shape));
  return keys;
}

// What a folder with the tensors of a model is opened as.
Model reopened(Family const& family, Model const& model, ModelConfig const& config) {
  TensorCatalog catalog{.files = {{.name = "model.safetensors", .path = {}, .size = 0}}, .tensors = {}};
  for (auto const& tensor : model.tensors) test::append_tensor(catalog, tensor.key, tensor.dtype, tensor.shape);
  return test::map_tensors(family, catalog, config);
}

void expect_same(Model const& found, Model const& expected) {
  ASSERT_EQ(found.tensors.size(), expected.tensors.size());
  for (std::size_t i = 0; i < found.tensors.size(); ++i) {
    auto const& tensor = found.tensors[i];
    EXPECT_EQ(tensor.key, expected.tensors[i].key);
    EXPECT_EQ(tensor.dtype, expected.tensors[i].dtype) << tensor.key;
    EXPECT_EQ(tensor.shape, expected.tensors[i].shape) << tensor.key;
    EXPECT_EQ(tensor.parameter, expected.tensors[i].parameter) << tensor.key;
    EXPECT_EQ(tensor.experts, expected.tensors[i].experts) << tensor.key;
    EXPECT_EQ(tensor.columns, expected.tensors[i].columns) << tensor.key;
  }
  ASSERT_EQ(found.parameters.size(), expected.parameters.size());
  for (std::size_t i = 0; i < found.parameters.size(); ++i) {
    auto const& parameter = found.parameters[i];
    EXPECT_EQ(parameter.fqn, expected.parameters[i].fqn);
    EXPECT_EQ(parameter.hf_dtype, expected.parameters[i].hf_dtype) << parameter.fqn;
    EXPECT_EQ(parameter.dtype, expected.parameters[i].dtype) << parameter.fqn;
    EXPECT_EQ(parameter.shape, expected.parameters[i].shape) << parameter.fqn;
    EXPECT_EQ(parameter.layout, expected.parameters[i].layout) << parameter.fqn;
    EXPECT_EQ(parameter.stacked_experts, expected.parameters[i].stacked_experts) << parameter.fqn;
    EXPECT_EQ(parameter.tensors, expected.parameters[i].tensors) << parameter.fqn;
  }
}

TEST(FreshModel, Rules44To49_WhatIsWrittenIsOpenedAsTheSame) {
  auto const config = make_config(tiny_qwen35());
  auto const natives = natives_of(make_model(tiny_qwen35()));
  for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
    auto const fresh = make_fresh_model(qwen3_5_moe(), natives, {.mtp_experts = form});
    expect_same(reopened(qwen3_5_moe(), fresh, config), fresh);
  }
}

TEST(FreshModel, Rules2And5a_AVisionModelIsWrittenInEitherLayoutAndOpenedAsTheSame) {
  auto const config = test::make_vl_config(tiny_qwen_vl());
  auto const natives = natives_of(test::make_vl_model(tiny_qwen_vl()));
  for (auto const layout : {ExpertLayout::hub, ExpertLayout::transformers}) {
    auto const fresh = make_fresh_model(qwen3_vl_moe(), natives, {.expert_layout = layout});
    expect_same(reopened(qwen3_vl_moe(), fresh, config), fresh);
  }
}

TEST(FreshModel, Rule45_SplitExpertsComeOneAfterTheOtherGateBeforeUp) {
  std::vector<NativeTensor> const natives{{"mtp.layers.0.mlp.experts.gate_and_up_projs", DType::BF16, {2, 6, 8}},
                                          {"mtp.layers.0.mlp.experts.down_projs", DType::BF16, {2, 4, 6}}};
  auto const model = make_fresh_model(qwen3_5_moe(), natives, {.mtp_experts = ExpertForm::split});
  EXPECT_THAT(keys_of(model), ElementsAre("mtp.layers.0.mlp.experts.0.gate_proj.weight [4, 6]",
                                          "mtp.layers.0.mlp.experts.0.up_proj.weight [4, 6]",
                                          "mtp.layers.0.mlp.experts.1.gate_proj.weight [4, 6]",
                                          "mtp.layers.0.mlp.experts.1.up_proj.weight [4, 6]",
                                          "mtp.layers.0.mlp.experts.0.down_proj.weight [6, 4]",
                                          "mtp.layers.0.mlp.experts.1.down_proj.weight [6, 4]"));
  EXPECT_EQ(model.tensors[3].experts, (Range{1, 2}));
  EXPECT_EQ(model.tensors[3].columns, (Range{4, 8}));
  EXPECT_EQ(model.tensors[5].columns, (Range{0, 6}));
  EXPECT_EQ(model.parameters[0].layout, Layout::swapped);
  EXPECT_EQ(model.parameters[0].tensors, (std::vector<std::uint32_t>{0, 1, 2, 3}));
}

TEST(FreshModel, Rules1To3_GroupedExpertsSwapTheirAxesInOneFamilyOnly) {
  std::vector<NativeTensor> const natives{
      {"model.language_model.layers.7.mlp.experts.gate_and_up_projs", DType::F16, {2, 6, 8}},
      {"model.language_model.layers.7.mlp.experts.down_projs", DType::F16, {2, 4, 6}}};
  std::string const at = "model.language_model.layers.7.mlp.experts.";
  EXPECT_THAT(keys_of(make_fresh_model(qwen3_5_moe(), natives)),
              ElementsAre(at + "gate_up_proj [2, 8, 6]", at + "down_proj [2, 6, 4]"));
  EXPECT_THAT(keys_of(make_fresh_model(qwen3_vl_moe(), natives)),
              ElementsAre(at + "gate_up_proj [2, 6, 8]", at + "down_proj [2, 4, 6]"));
  EXPECT_THAT(keys_of(make_fresh_model(qwen3_vl_moe(), natives, {.expert_layout = ExpertLayout::transformers})),
              ElementsAre(at + "gate_up_proj [2, 8, 6]", at + "down_proj [2, 6, 4]"));
}

TEST(FreshModel, Rule57_DtypesAreKept) {
  std::string const at = "model.language_model.layers.0.linear_attn.";
  for (auto const dtype : {DType::BF16, DType::F32}) {
    auto const model =
        make_fresh_model(qwen3_5_moe(), {{at + "_fp32_params.dt_bias", dtype, {4}}, {at + "norm.weight", dtype, {4}}});
    EXPECT_EQ(model.tensors[0].key, at + "dt_bias");
    EXPECT_EQ(model.tensors[0].dtype, dtype);
    EXPECT_FALSE(model.parameters[0].converted());
    EXPECT_EQ(model.tensors[1].dtype, dtype);
  }
}

TEST(FreshModel, Rule7_EveryNameKeepsItsPrefixOrItsLackOfOne) {
  for (std::string const prefix : {"model.", ""}) {
    auto const model = make_fresh_model(
        qwen3_5_moe(), {{prefix + "language_model.layers.0.mlp.experts.down_projs", DType::BF16, {2, 4, 6}},
                        {prefix + "visual.pos_embed.weight", DType::BF16, {4}}});
    EXPECT_EQ(model.tensors[0].key, prefix + "language_model.layers.0.mlp.experts.down_proj");
    EXPECT_TRUE(model.parameters[0].stacked_experts);
    EXPECT_EQ(model.tensors[1].key, prefix + "visual.pos_embed.weight");
  }
}

TEST(FreshModel, StackedExpertsOfTheWrongAxesAreRefused) {
  std::string const fqn = "mtp.layers.0.mlp.experts.gate_and_up_projs";
  for (auto const form : {ExpertForm::grouped, ExpertForm::split}) {
    for (auto const& shape : {Shape{}, Shape{4, 6}, Shape{2, 6, 7}, Shape{2, 6, 8, 1}, Shape{0, 6, 8},
                              Shape{std::uint64_t{1} << 60, 0, 8}, Shape{1, 6, 0}}) {
      try {
        (void)make_fresh_model(qwen3_5_moe(), {{fqn, DType::BF16, shape}}, {.mtp_experts = form});
        ADD_FAILURE() << to_string(shape);
      } catch (FormatError const& error) {
        EXPECT_EQ(error.tensor, fqn);
        EXPECT_THAT(error.what(), AllOf(HasSubstr(fqn), HasSubstr("found BF16 " + to_string(shape))));
      }
    }
  }
}

TEST(FreshModel, Rules24And48_NamesThatMeetOrLeadAstrayAreRefused) {
  EXPECT_THROW((void)make_fresh_model(qwen3_5_moe(), {{"mtp.fc.weight", DType::BF16, {4}},
                                                      {"mtp.layers.0.eh_proj.weight", DType::BF16, {4}}}),
               FormatError);
  // What upstream writes under a name that its reader takes for another one (rules 24, 46).
  EXPECT_THROW((void)make_fresh_model(
                   qwen3_5_moe(), {{"language_model.layers.0.mlp.experts.down_projs.lora", DType::BF16, {2, 4, 6}}}),
               FormatError);
}

TEST(FreshModel, Rule49_TheHeadIsNeverWrittenBehindThePrefix) {
  auto const model = make_fresh_model(
      qwen3_5_moe(), {{"model.language_model.norm.weight", DType::BF16, {4}}, {"lm_head.weight", DType::BF16, {4}}});
  EXPECT_EQ(model.tensors[1].key, "lm_head.weight");
  EXPECT_THROW((void)make_fresh_model(qwen3_5_moe(), {{"model.lm_head.weight", DType::BF16, {4}}}), FormatError);
}

// Upstream lets the last one win.
TEST(FreshModel, Rule24_NamesOfAVisionModelThatMeetAreRefused) {
  std::string const at = "model.language_model.layers.0.mlp.experts.";
  for (auto const& [one, other] : {std::pair{"gate_and_up_projs", "gate_up_proj"}, {"down_projs", "down_proj"}}) {
    std::vector<NativeTensor> natives{{at + "gate_and_up_projs", DType::BF16, {2, 6, 8}},
                                      {at + "down_projs", DType::BF16, {2, 4, 6}},
                                      {at + other, DType::BF16, {2, 4, 6}}};
    try {
      (void)make_fresh_model(qwen3_vl_moe(), natives);
      ADD_FAILURE() << other;
    } catch (FormatError const& error) {
      EXPECT_EQ(error.what(), at + other + ": becomes " + at + other + ", as " + at + one + " does");
    }
  }
}

TEST(FreshModel, Rules24And52_KeysComeInTheOrderOfTheNamesAndWhatNoRuleNamesIsKept) {
  std::string const at = "model.language_model.layers.0.mlp.experts.";
  std::vector<NativeTensor> const natives{{"model.z.unknown", DType::I64, {3, 5}},
                                          {at + "down_projs", DType::BF16, {2, 4, 6}},
                                          {"model.a.unknown", DType::F8_E5M2, {}},
                                          {at + "gate_and_up_projs", DType::BF16, {2, 6, 8}},
                                          {"lm_head.weight", DType::F16, {7}}};
  for (auto const* family : {&qwen3_5_moe(), &qwen3_vl_moe()}) {
    auto const model = make_fresh_model(*family, natives);
    std::vector<std::string> keys;
    for (auto const& tensor : model.tensors) keys.push_back(tensor.key);
    EXPECT_THAT(keys, ElementsAre("model.z.unknown", at + "down_proj", "model.a.unknown", at + "gate_up_proj",
                                  "lm_head.weight"));
    for (auto const unmatched : {0U, 2U, 4U}) {
      EXPECT_EQ(model.tensors[unmatched].dtype, natives[unmatched].dtype);
      EXPECT_EQ(model.tensors[unmatched].shape, natives[unmatched].shape);
      EXPECT_FALSE(model.parameters[unmatched].converted());
      EXPECT_EQ(model.parameters[unmatched].layout, Layout::same);
    }
  }
}

TEST(FreshModel, Rule5a_ExpertsOfTheDecoderAreSplitApartFromThoseOfMtp) {
  std::string const decoder = "model.language_model.layers.0.mlp.experts.", mtp = "mtp.layers.0.mlp.experts.";
  std::vector<NativeTensor> const natives{{decoder + "down_projs", DType::BF16, {1, 4, 6}},
                                          {mtp + "down_projs", DType::BF16, {1, 4, 6}}};
  EXPECT_THAT(keys_of(make_fresh_model(qwen3_5_moe(), natives, {.decoder_experts = ExpertForm::split})),
              ElementsAre(decoder + "0.down_proj.weight [6, 4]", mtp + "down_proj [1, 6, 4]"));
  EXPECT_THAT(keys_of(make_fresh_model(qwen3_5_moe(), natives, {.mtp_experts = ExpertForm::split})),
              ElementsAre(decoder + "down_proj [1, 6, 4]", mtp + "0.down_proj.weight [6, 4]"));
}

TEST(FreshModel, Rule57_WhatWasWidenedIsWrittenInTheDtypeThatIsNamed) {
  std::string const fqn = "model.language_model.layers.0.linear_attn._fp32_params.A_log";
  auto const model = make_fresh_model(qwen3_5_moe(), {{fqn, DType::F32, {4}}}, {.hf_dtypes = {{fqn, DType::BF16}}});
  EXPECT_EQ(model.tensors[0].dtype, DType::BF16);
  EXPECT_EQ(model.parameters[0].hf_dtype, DType::BF16);
  EXPECT_EQ(model.parameters[0].dtype, DType::F32);
}

}  // namespace
}  // namespace rankslice
