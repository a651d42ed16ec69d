#include "rankslice/hf_keys.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr auto kQwen35 = "qwen3_5_moe";
constexpr auto kQwenVl = "qwen3_vl_moe";
HfForms const kFp8{.decoder_experts = ExpertKeys::split_fp8};
HfForms const kMtpFp8{.mtp_experts = ExpertKeys::split_fp8};
HfForms const kMtpSplit{.mtp_experts = ExpertKeys::split};

std::string const kLayer0 = "model.language_model.layers.0.mlp.experts.";
std::string const kMtp0 = "mtp.layers.0.mlp.experts.";

/// G [E, H, 2I] and D [E, I, H] of a layer (rule 1).
std::vector<NativeTensor> experts(std::string const& at, std::uint64_t e, std::uint64_t h, std::uint64_t i) {
  return {{at + "gate_and_up_projs", DType::BF16, {e, h, 2 * i}}, {at + "down_projs", DType::BF16, {e, i, h}}};
}

std::vector<std::string> listed(std::vector<LoadDestination> const& destinations) {
  std::vector<std::string> lines;
  for (auto const& tensor : destinations) {
    lines.push_back(fmt::format("{} {} {}", tensor.key, name(tensor.dtype), to_string(tensor.shape)));
  }
  return lines;
}

std::vector<std::string> local_parts(std::vector<LoadDestination> const& destinations) {
  std::vector<std::string> lines;
  for (auto const& tensor : destinations) {
    lines.push_back(fmt::format("{} {} at {}", tensor.key, to_string(tensor.local_shape), to_string(tensor.offsets)));
  }
  return lines;
}

DestinationOptions on_rank(int rank, Mesh const& mesh, HfForms const& forms) {
  return {.forms = forms, .mesh = mesh, .coordinate = mesh.coordinate(rank), .quantization = true};
}

template <typename Wrong>
std::string refusal(std::vector<NativeTensor> const& tensors, DestinationOptions const& options = {}) {
  try {
    (void)load_destinations(kQwen35, tensors, options);
  } catch (Wrong const& error) {
    return error.what();
  }
  return "no error";
}

// H = 300 and I = 200 need 3 and 2 blocks of 128.
TEST(HfKeys, Rule50_EachLocalExpertHasGateItsScaleUpItsScaleThenDownItsScale) {
  auto const destinations = load_destinations(kQwen35, experts(kLayer0, 4, 300, 200), on_rank(1, {.ep = 2}, kFp8));
  EXPECT_THAT(
      listed(destinations),
      ElementsAre(
          kLayer0 + "2.gate_proj.weight F8_E4M3 [200, 300]", kLayer0 + "2.gate_proj.weight_scale_inv BF16 [2, 3]",
          kLayer0 + "2.up_proj.weight F8_E4M3 [200, 300]", kLayer0 + "2.up_proj.weight_scale_inv BF16 [2, 3]",
          kLayer0 + "3.gate_proj.weight F8_E4M3 [200, 300]", kLayer0 + "3.gate_proj.weight_scale_inv BF16 [2, 3]",
          kLayer0 + "3.up_proj.weight F8_E4M3 [200, 300]", kLayer0 + "3.up_proj.weight_scale_inv BF16 [2, 3]",
          kLayer0 + "2.down_proj.weight F8_E4M3 [300, 200]", kLayer0 + "2.down_proj.weight_scale_inv BF16 [3, 2]",
          kLayer0 + "3.down_proj.weight F8_E4M3 [300, 200]", kLayer0 + "3.down_proj.weight_scale_inv BF16 [3, 2]"));
}

TEST(HfKeys, Rule50_ADestinationSaysWhatOfItsNativeTensorItIs) {
  auto const found = load_destinations(kQwen35, experts(kLayer0, 4, 300, 200), on_rank(1, {.ep = 2}, kFp8));
  ASSERT_EQ(found.size(), 12U);
  for (std::size_t i : {2U, 3U}) {  // up and its scales
    EXPECT_EQ(found[i].fqn, kLayer0 + "gate_and_up_projs");
    EXPECT_EQ(found[i].experts, (Range{2, 3}));
    EXPECT_EQ(found[i].columns, (Range{200, 400}));
    EXPECT_EQ(found[i].is_scales, i == 3);
  }
  EXPECT_EQ(found[10].fqn, kLayer0 + "down_projs");
  EXPECT_EQ(found[10].experts, (Range{3, 4}));
  EXPECT_EQ(found[10].columns, (Range{0, 300}));
}

TEST(HfKeys, Rule50_ShardedDecoderWeightsHaveWholeScales) {
  auto const found =
      load_destinations(kQwen35, experts(kLayer0, 1, 300, 200), on_rank(1, {.ep_shard = 2, .ep = 1}, kFp8));
  EXPECT_THAT(local_parts(found), ElementsAre(kLayer0 + "0.gate_proj.weight [200, 150] at [0, 150]",
                                              kLayer0 + "0.gate_proj.weight_scale_inv [2, 3] at [0, 0]",
                                              kLayer0 + "0.up_proj.weight [200, 150] at [0, 150]",
                                              kLayer0 + "0.up_proj.weight_scale_inv [2, 3] at [0, 0]",
                                              kLayer0 + "0.down_proj.weight [300, 100] at [0, 100]",
                                              kLayer0 + "0.down_proj.weight_scale_inv [3, 2] at [0, 0]"));
}

TEST(HfKeys, Rule50_OnlySplitFp8ExpertsKnowTheFlagAndWithoutItThoseOfTheDecoderAreGrouped) {
  auto const tensors = experts(kLayer0, 4, 300, 200);
  auto const grouped =
      ElementsAre(kLayer0 + "gate_up_proj BF16 [4, 400, 300]", kLayer0 + "down_proj BF16 [4, 300, 200]");
  EXPECT_THAT(listed(load_destinations(kQwen35, tensors, {.forms = kFp8})), grouped);
  EXPECT_THAT(listed(load_destinations(kQwen35, tensors, {.quantization = true})), grouped);
  EXPECT_THAT(listed(load_destinations(kQwen35, tensors)), grouped);
}

TEST(HfKeys, Rule5a_ExpertsThatAreSplitWithoutScalesStaySo) {
  for (auto const quantization : {false, true}) {
    auto const found =
        load_destinations(kQwen35, experts(kLayer0, 1, 300, 200),
                          {.forms = {.decoder_experts = ExpertKeys::split}, .quantization = quantization});
    EXPECT_THAT(listed(found), ElementsAre(kLayer0 + "0.gate_proj.weight BF16 [200, 300]",
                                           kLayer0 + "0.up_proj.weight BF16 [200, 300]",
                                           kLayer0 + "0.down_proj.weight BF16 [300, 200]"));
  }
}

TEST(HfKeys, Rule50_DecoderNamesMatchFromTheirStart) {
  for (std::string const at :
       {"model.language_model.layers.7", "model.layers.7", "language_model.layers.7", "layers.7"}) {
    auto const found = load_destinations(kQwen35, {{at + ".mlp.experts.down_projs", DType::F16, {1, 4, 6}}},
                                         {.forms = kFp8, .quantization = true});
    EXPECT_THAT(listed(found), ElementsAre(at + ".mlp.experts.0.down_proj.weight F8_E4M3 [6, 4]",
                                           at + ".mlp.experts.0.down_proj.weight_scale_inv BF16 [1, 1]"));
  }
  for (std::string const at : {"draft.model.language_model.layers.7", "draft.layers.7", "model.visual.layers.7",
                               "model.language_model.layers.x", "mtp.layers.7", "model.mtp.layers.7"}) {
    auto const found = load_destinations(kQwen35, {{at + ".mlp.experts.down_projs", DType::F16, {1, 4, 6}}},
                                         {.forms = kFp8, .quantization = true});
    EXPECT_THAT(listed(found), ElementsAre(at + ".mlp.experts.down_proj F16 [1, 6, 4]"));
  }
}

TEST(HfKeys, Rule50_MtpScalesStandBeforeTheirWeights) {
  auto const found = load_destinations(kQwen35, experts(kMtp0, 4, 300, 200), on_rank(3, {.ep = 4}, kMtpFp8));
  EXPECT_THAT(
      listed(found),
      ElementsAre(kMtp0 + "3.gate_proj.weight_scale_inv F32 [2, 3]", kMtp0 + "3.gate_proj.weight F8_E4M3 [200, 300]",
                  kMtp0 + "3.up_proj.weight_scale_inv F32 [2, 3]", kMtp0 + "3.up_proj.weight F8_E4M3 [200, 300]",
                  kMtp0 + "3.down_proj.weight_scale_inv F32 [3, 2]", kMtp0 + "3.down_proj.weight F8_E4M3 [300, 200]"));
}

TEST(HfKeys, Rule50_MtpScalesAreShardedAsTheirWeights) {
  auto const found =
      load_destinations(kQwen35, experts(kMtp0, 1, 512, 256), on_rank(1, {.ep_shard = 2, .ep = 1}, kMtpFp8));
  EXPECT_THAT(local_parts(found), ElementsAre(kMtp0 + "0.gate_proj.weight_scale_inv [2, 2] at [0, 2]",
                                              kMtp0 + "0.gate_proj.weight [256, 256] at [0, 256]",
                                              kMtp0 + "0.up_proj.weight_scale_inv [2, 2] at [0, 2]",
                                              kMtp0 + "0.up_proj.weight [256, 256] at [0, 256]",
                                              kMtp0 + "0.down_proj.weight_scale_inv [4, 1] at [0, 1]",
                                              kMtp0 + "0.down_proj.weight [512, 128] at [0, 128]"));
}

TEST(HfKeys, Rule50_MtpBlocksAreNotCut) {
  auto const tensors = experts(kMtp0, 2, 512, 192);  // D's 192 rows: 96 for each of 2 ranks
  auto const message = refusal<PlanError>(tensors, on_rank(0, {.ep_shard = 2, .ep = 1}, kMtpFp8));
  EXPECT_THAT(message, HasSubstr("MTP FP8 weight shards must align to 128-element block boundaries"));
  EXPECT_THAT(message, HasSubstr(kMtp0 + "0.down_proj.weight: "));
  EXPECT_EQ(refusal<PlanError>(tensors, on_rank(0, {.ep = 1}, kMtpFp8)), "no error");
  EXPECT_EQ(refusal<PlanError>(tensors, on_rank(0, {.ep_shard = 2, .ep = 1}, kMtpSplit)), "no error");
  EXPECT_EQ(refusal<PlanError>(experts(kLayer0, 2, 512, 192), on_rank(0, {.ep_shard = 2, .ep = 1}, kFp8)), "no error");
}

TEST(HfKeys, Rule44_TheFormsOfDecoderAndMtpAreIndependent) {
  auto tensors = experts(kLayer0, 1, 128, 128);
  tensors.erase(tensors.begin());
  tensors.push_back(experts(kMtp0, 1, 128, 128)[1]);
  auto const down = [&](HfForms const& forms, bool quantization) {
    return listed(load_destinations(kQwen35, tensors, {.forms = forms, .quantization = quantization}));
  };
  auto const fp8 = kLayer0 + "0.down_proj.weight F8_E4M3 [128, 128]";
  auto const scale = kLayer0 + "0.down_proj.weight_scale_inv BF16 [1, 1]";
  auto const grouped = kLayer0 + "down_proj BF16 [1, 128, 128]";
  auto const mtp_split = kMtp0 + "0.down_proj.weight BF16 [128, 128]";
  EXPECT_THAT(down(kFp8, true), ElementsAre(fp8, scale, kMtp0 + "down_proj BF16 [1, 128, 128]"));
  EXPECT_THAT(down({.decoder_experts = ExpertKeys::split_fp8, .mtp_experts = ExpertKeys::split}, true),
              ElementsAre(fp8, scale, mtp_split));
  EXPECT_THAT(down(kMtpFp8, true), ElementsAre(grouped, kMtp0 + "0.down_proj.weight_scale_inv F32 [1, 1]",
                                               kMtp0 + "0.down_proj.weight F8_E4M3 [128, 128]"));
  EXPECT_THAT(down(kMtpFp8, false), ElementsAre(grouped, mtp_split));
}

TEST(HfKeys, Rule45_SplitMtpExpertsAreThoseOfTheRankGateBeforeUp) {
  auto const found = load_destinations(kQwen35, experts(kMtp0, 3, 6, 4),
                                       {.forms = kMtpSplit, .mesh = {.ep = 2}, .coordinate = {.ep = 0}});
  EXPECT_THAT(listed(found),
              ElementsAre(kMtp0 + "0.gate_proj.weight BF16 [4, 6]", kMtp0 + "0.up_proj.weight BF16 [4, 6]",
                          kMtp0 + "1.gate_proj.weight BF16 [4, 6]", kMtp0 + "1.up_proj.weight BF16 [4, 6]",
                          kMtp0 + "0.down_proj.weight BF16 [6, 4]", kMtp0 + "1.down_proj.weight BF16 [6, 4]"));
}

TEST(HfKeys, Rule46_GroupedExpertsSwapTheirAxesAndTheShardedOneWithThem) {
  Mesh const mesh{.ep_shard = 2, .ep = 2};
  auto const found =
      load_destinations(kQwen35, experts(kLayer0, 3, 6, 4), {.mesh = mesh, .coordinate = {.ep_shard = 1, .ep = 0}});
  EXPECT_THAT(listed(found),
              ElementsAre(kLayer0 + "gate_up_proj BF16 [3, 8, 6]", kLayer0 + "down_proj BF16 [3, 6, 4]"));
  EXPECT_THAT(local_parts(found), ElementsAre(kLayer0 + "gate_up_proj [2, 8, 3] at [0, 0, 3]",
                                              kLayer0 + "down_proj [2, 6, 2] at [0, 0, 2]"));
}

TEST(HfKeys, Rule46_IsForPartsOfNamesToo) {
  auto const found = load_destinations(kQwen35, {{kLayer0 + "down_projs.lora", DType::BF16, {2, 4, 6}},
                                                 {"draft.mlp.experts.gate_and_up_projs", DType::BF16, {2, 6, 8, 5}}});
  EXPECT_THAT(listed(found), ElementsAre(kLayer0 + "down_proj.lora BF16 [2, 6, 4]",
                                         "draft.mlp.experts.gate_up_proj BF16 [2, 8, 6, 5]"));
  EXPECT_THAT(refusal<FormatError>({{kLayer0 + "down_projs.lora", DType::BF16, {4, 6}}}),
              HasSubstr("down_projs.lora: becomes " + kLayer0 + "down_proj.lora with axes 1 and 2 exchanged"));
}

TEST(HfKeys, Rules47To49_AllElseIsRenamedAsInAnyExport) {
  std::string const at = "model.language_model.layers.0.";
  std::vector<NativeTensor> const tensors{
      {"lm_head.weight", DType::BF16, {8, 6}},
      {at + "mlp.shared_experts.up_proj.weight", DType::BF16, {4, 6}},
      {at + "mlp.shared_expert_gate.weight", DType::BF16, {1, 6}},
      {at + "linear_attn._fp32_params.dt_bias", DType::F32, {4}},
      {"mtp.layers.0.eh_proj.weight", DType::BF16, {6, 12}},
      {"mtp.layers.0.enorm.weight", DType::BF16, {6}},
      {"mtp.layers.0.hnorm.weight", DType::BF16, {6}},
      {"mtp.layers.0.final_layernorm.weight", DType::BF16, {6}},
      {"mtp.layers.1.eh_proj.weight", DType::BF16, {6, 12}},
  };
  auto const expected = ElementsAre(
      "lm_head.weight BF16 [8, 6]", at + "mlp.shared_expert.up_proj.weight BF16 [4, 6]",
      at + "mlp.shared_expert_gate.weight BF16 [1, 6]", at + "linear_attn.dt_bias F32 [4]",
      "mtp.fc.weight BF16 [6, 12]", "mtp.pre_fc_norm_embedding.weight BF16 [6]",
      "mtp.pre_fc_norm_hidden.weight BF16 [6]", "mtp.norm.weight BF16 [6]", "mtp.layers.1.eh_proj.weight BF16 [6, 12]");
  EXPECT_THAT(listed(load_destinations(kQwen35, tensors)), expected);
  // rule 50: no scales but those of experts
  EXPECT_THAT(listed(load_destinations(kQwen35, tensors, {.forms = kFp8, .quantization = true})), expected);
}

TEST(HfKeys, Rules48And55_TrackedFloatsAreF32AndIntegersAsTheyAre) {
  std::string const at = "model.language_model.layers.0.linear_attn.";
  for (auto const dtype : {DType::BF16, DType::F16, DType::F32, DType::F64, DType::F8_E4M3}) {
    auto const found = load_destinations(
        kQwen35, {{at + "_fp32_params.A_log", dtype, {4}}, {at + "dt_bias", dtype, {4}}, {"A_log", dtype, {4}}});
    EXPECT_THAT(listed(found),
                ElementsAre(at + "A_log F32 [4]", at + "dt_bias F32 [4]", fmt::format("A_log {} [4]", name(dtype))));
  }
  EXPECT_THAT(listed(load_destinations(kQwen35, {{at + "A_log", DType::I64, {4}}})), ElementsAre(at + "A_log I64 [4]"));
}

TEST(HfKeys, Rule52_TheKeysOfAnExportWithoutExtraStateInTheOrderOfTheInput) {
  std::vector<NativeTensor> tensors{{"something.unknown", DType::I32, {}},
                                    {kLayer0 + "_extra_state", DType::U8, {0}},
                                    {kMtp0 + "down_projs", DType::BF16, {2, 4, 6}},
                                    {kLayer0 + "down_projs", DType::BF16, {2, 4, 6}},
                                    {kLayer0 + "down_projs._extra_state", DType::U8, {3}},
                                    {"lm_head.weight", DType::BF16, {8, 6}}};
  HfForms const forms{.decoder_experts = ExpertKeys::split_fp8, .mtp_experts = ExpertKeys::split_fp8};
  EXPECT_THAT(hf_keys(kQwen35, tensors, forms),
              ElementsAre("something.unknown", kMtp0 + "0.down_proj.weight", kMtp0 + "1.down_proj.weight",
                          kLayer0 + "down_proj", "lm_head.weight"));
  EXPECT_THAT(hf_keys(kQwen35, tensors),
              ElementsAre("something.unknown", kMtp0 + "down_proj", kLayer0 + "down_proj", "lm_head.weight"));
}

TEST(HfKeys, Rule25_EachKeyIsJudgedByItself) {
  auto const found = load_destinations(
      kQwen35, experts(kLayer0, 2, 128, 128),
      {.forms = kFp8, .quantization = true, .keys = key_selection({}, R"(.*_scale_inv|.*experts\.0|.*up_proj)")});
  EXPECT_THAT(listed(found), ElementsAre(kLayer0 + "1.gate_proj.weight F8_E4M3 [128, 128]",
                                         kLayer0 + "1.down_proj.weight F8_E4M3 [128, 128]"));
}

TEST(HfKeys, Rule56_TrackedFloatsAreForcedToF32UnderTheNamesGiven) {
  std::string const at = "model.language_model.layers.0.linear_attn.";
  std::vector<NativeTensor> const tensors{
      {at + "A_log", DType::BF16, {4}},
      {at + "_fp32_params.dt_bias", DType::F32, {4}},
      {at + "xA_log", DType::F16, {4}},
      {at + "A_log_extra", DType::BF16, {4}},
      {at + "norm.weight", DType::F32, {4}},
      {"model.layers.1.linear_attn.dt_bias", DType::I64, {4}},
      {"model.layers.1.dt_bias", DType::BF16, {4}},
  };
  std::map<std::string, DType> const expected{
      {at + "A_log", DType::F32}, {at + "_fp32_params.dt_bias", DType::F32}, {at + "xA_log", DType::F32}};
  EXPECT_EQ(forced_hf_dtypes(kQwen35, tensors), expected);
  EXPECT_THAT(forced_hf_dtypes(kQwenVl, tensors), IsEmpty());
}

TEST(HfKeys, Rule24_AVisionModelIgnoresTheFlag) {
  auto const tensors = experts(kLayer0, 2, 6, 4);
  auto forms = kFp8;
  EXPECT_THAT(listed(load_destinations(kQwenVl, tensors, {.forms = forms, .quantization = true})),
              ElementsAre(kLayer0 + "gate_up_proj BF16 [2, 6, 8]", kLayer0 + "down_proj BF16 [2, 4, 6]"));
  forms.expert_layout = ExpertLayout::transformers;  // rule 5a
  EXPECT_THAT(listed(load_destinations(kQwenVl, tensors, {.forms = forms, .quantization = true})),
              ElementsAre(kLayer0 + "gate_up_proj BF16 [2, 8, 6]", kLayer0 + "down_proj BF16 [2, 6, 4]"));
  EXPECT_THAT(hf_keys(kQwenVl, {{"mtp.layers.0.mlp.experts.down_projs.lora", DType::BF16, {2}}}),
              ElementsAre("mtp.layers.0.mlp.experts.down_proj.lora"));
}

// Rules 9 and 50: over all `ep`, the split keys are a partition; over all `ep_shard`, the columns of each are.
TEST(HfKeys, Rules9And50_TheRanksTogetherHaveEveryExpertOnce) {
  std::uint64_t const h = 512, i = 256;
  HfForms const forms{.decoder_experts = ExpertKeys::split_fp8, .mtp_experts = ExpertKeys::split_fp8};
  for (std::uint64_t const e : {1U, 3U, 8U, 10U}) {
    auto tensors = experts(kLayer0, e, h, i);
    for (auto& mtp : experts(kMtp0, e, h, i)) tensors.push_back(std::move(mtp));
    for (int ep = 1; ep <= 6; ++ep) {
      for (int ep_shard : {1, 2}) {
        Mesh const mesh{.ep_shard = ep_shard, .ep = ep};
        std::map<std::string, std::vector<Range>> columns_of;
        for (int rank = 0; rank < mesh.ranks(); ++rank) {
          for (auto const& tensor : load_destinations(kQwen35, tensors, on_rank(rank, mesh, forms))) {
            if (tensor.is_scales) continue;
            auto const begin = tensor.offsets[1];
            columns_of[tensor.key].push_back({begin, begin + tensor.local_shape[1]});
          }
        }
        EXPECT_EQ(columns_of.size(), 2 * 3 * e) << to_string(Shape{e}) << mesh.ep << mesh.ep_shard;
        for (auto const& [key, columns] : columns_of) {
          auto const all = key.find("down_proj") == std::string::npos ? h : i;
          auto const expected =
              ep_shard == 1 ? std::vector<Range>{{0, all}} : std::vector<Range>{{0, all / 2}, {all / 2, all}};
          EXPECT_EQ(columns, expected) << key;
        }
      }
    }
  }
}

TEST(HfKeys, Rule42_ARankWithoutExpertsHasNoneOfTheirSplitKeysAndNothingOfGroupedOnes) {
  auto const tensors = experts(kLayer0, 3, 6, 4);
  EXPECT_THAT(load_destinations(kQwen35, tensors, on_rank(3, {.ep = 4}, kFp8)), IsEmpty());
  EXPECT_THAT(
      local_parts(load_destinations(kQwen35, tensors, on_rank(3, {.ep = 4}, {}))),
      ElementsAre(kLayer0 + "gate_up_proj [0, 8, 6] at [3, 0, 0]", kLayer0 + "down_proj [0, 6, 4] at [3, 0, 0]"));
}

Checkpoint checkpoint_of(Model model) {
  Checkpoint checkpoint;
  checkpoint.family = kQwen35;
  checkpoint.model = std::move(model);
  return checkpoint;
}

std::vector<std::string> in_catalog(test::Qwen35Shape const& shape) {
  std::vector<std::string> lines;
  for (auto const& tensor : test::make_catalog(shape).tensors) {
    auto const widened = tensor.name.ends_with("dt_bias");  // rule 57
    lines.push_back(
        fmt::format("{} {} {}", tensor.name, widened ? "F32" : name(tensor.dtype), to_string(tensor.shape)));
  }
  return lines;
}

TEST(HfKeys, Rule5_ACheckpointIsLoadedFromTheKeysThatItHas) {
  auto shape = test::tiny_qwen35();
  for (auto const decoder : {ExpertForm::grouped, ExpertForm::split}) {
    for (auto const mtp : {ExpertForm::grouped, ExpertForm::split}) {
      shape.experts_form = decoder;
      shape.mtp_form = mtp;
      auto const checkpoint = checkpoint_of(test::make_model(shape));
      for (auto const quantization : {false, true}) {
        EXPECT_THAT(listed(load_destinations(checkpoint, {.quantization = quantization})),
                    testing::UnorderedElementsAreArray(in_catalog(shape)));
      }
    }
  }
}

TEST(HfKeys, Rule43_KeysAreSpelledAsInTheCheckpoint) {
  auto catalog = test::make_catalog(test::tiny_qwen35());
  for (auto& tensor : catalog.tensors) {
    auto const from = tensor.name.find("language_model.layers.0.mlp.experts.");
    if (from != std::string::npos) tensor.name.erase(from, std::string("language_model.").size());
  }
  ModelConfig const config = test::make_config(test::tiny_qwen35());
  auto const checkpoint = checkpoint_of(test::map_tensors(*families().front(), catalog, config));
  auto const found =
      load_destinations(checkpoint, {.forms = kFp8, .quantization = true, .keys = key_selection(R"(model\.layers)")});
  ASSERT_EQ(found.size(), 4U * 6U);  // E = 4
  EXPECT_EQ(found.front().key, "model.layers.0.mlp.experts.0.gate_proj.weight");
  EXPECT_EQ(found.front().fqn, kLayer0 + "gate_and_up_projs");
  EXPECT_EQ(found.back().key, "model.layers.0.mlp.experts.3.down_proj.weight_scale_inv");
}

// The tiny model has E = 4, H = 16 and I = 8.
TEST(HfKeys, Rule50_ACheckpointInBlockFp8IsLoadedFromCodesAndScales) {
  auto shape = test::tiny_qwen35();
  shape.experts_form = shape.mtp_form = ExpertForm::split;
  auto checkpoint = checkpoint_of(test::make_model(shape));
  for (auto& tensor : checkpoint.model.tensors) {
    if (tensor.key.find(".experts.") != std::string::npos) tensor.dtype = DType::F8_E4M3;
  }
  auto const of_down = [&](bool quantization) {
    return listed(load_destinations(checkpoint,
                                    {.mesh = {.ep = 4},
                                     .coordinate = {.ep = 2},
                                     .quantization = quantization,
                                     .keys = key_selection(R"(.*(language_model|mtp)\.layers\.0\..*experts.*down)")}));
  };
  EXPECT_THAT(of_down(true), testing::UnorderedElementsAre(kLayer0 + "2.down_proj.weight F8_E4M3 [16, 8]",
                                                           kLayer0 + "2.down_proj.weight_scale_inv BF16 [1, 1]",
                                                           kMtp0 + "2.down_proj.weight_scale_inv F32 [1, 1]",
                                                           kMtp0 + "2.down_proj.weight F8_E4M3 [16, 8]"));
  EXPECT_THAT(of_down(false), testing::UnorderedElementsAre(kLayer0 + "down_proj BF16 [4, 16, 8]",
                                                            kMtp0 + "2.down_proj.weight BF16 [16, 8]"));
}

// Rules 26, 50: layers that `modules_to_not_convert` names are loaded from what they are, and exported as the others.
TEST(HfKeys, Rule50_OfACheckpointWithFp8InSomeLayersTheExportHasOneForm) {
  auto shape = test::tiny_qwen35();
  shape.experts_form = ExpertForm::split;
  auto checkpoint = checkpoint_of(test::make_model(shape));
  for (auto& tensor : checkpoint.model.tensors) {
    if (tensor.key.starts_with(kLayer0)) tensor.dtype = DType::F8_E4M3;
  }
  std::string const layer3 = "model.language_model.layers.3.mlp.experts.";
  auto const of_down = [&](bool quantization) {
    return listed(load_destinations(checkpoint, {.mesh = {.ep = 4},
                                                 .coordinate = {.ep = 2},
                                                 .quantization = quantization,
                                                 .keys = key_selection(R"(.*model\.layers\.[03]\..*experts.*down)")}));
  };
  EXPECT_THAT(of_down(true), testing::UnorderedElementsAre(kLayer0 + "2.down_proj.weight F8_E4M3 [16, 8]",
                                                           kLayer0 + "2.down_proj.weight_scale_inv BF16 [1, 1]",
                                                           layer3 + "2.down_proj.weight BF16 [16, 8]"));
  EXPECT_THAT(of_down(false), testing::UnorderedElementsAre(kLayer0 + "down_proj BF16 [4, 16, 8]",
                                                            layer3 + "down_proj BF16 [4, 16, 8]"));
}

TEST(HfKeys, TwoTensorsDoNotMeetInOneKey) {
  std::string const at = "model.language_model.layers.0.linear_attn.";
  EXPECT_THAT(refusal<FormatError>({{at + "A_log", DType::F32, {4}}, {at + "_fp32_params.A_log", DType::F32, {4}}}),
              HasSubstr("becomes " + at + "A_log, as " + at + "A_log does"));
}

TEST(HfKeys, StackedExpertsOfTheWrongAxesAreRefused) {
  for (auto const& shape : {Shape{4, 6}, Shape{2, 6, 7}, Shape{0, 6, 8}}) {
    EXPECT_THAT(refusal<FormatError>({{kLayer0 + "gate_and_up_projs", DType::BF16, shape}}),
                HasSubstr("stacked experts need 3 axes"))
        << to_string(shape);
  }
}

TEST(HfKeys, Rule15_RowsThatDoNotDivideAreRefused) {
  EXPECT_THAT(refusal<PlanError>(experts(kLayer0, 2, 6, 5), on_rank(0, {.ep_shard = 2, .ep = 1}, kFp8)),
              HasSubstr("Base down_projs dim 1 (5) is not divisible by ep_shard_size=2"));
  EXPECT_THAT(refusal<PlanError>(experts(kLayer0, 2, 6, 4), {.mesh = {.ep = 2}, .coordinate = {.ep = 2}}),
              HasSubstr("outside the mesh"));
}

TEST(HfKeys, AnUnknownFamilyIsRefused) {
  EXPECT_THROW((void)load_destinations("gpt2", {}), UsageError);
  EXPECT_THROW((void)hf_keys("gpt2", {}), UsageError);
  EXPECT_THROW((void)forced_hf_dtypes("gpt2", {}), UsageError);
}

}  // namespace
}  // namespace rankslice
