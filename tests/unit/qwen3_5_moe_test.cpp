#include "model/qwen3_5_moe.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "model/key_pattern.hpp"

namespace rankslice {
namespace {

struct Names {
  std::string_view hf;
  std::string_view fqn;
};

// One of every kind of key of a real checkpoint (adapters.md D) that keeps its values as they are.
constexpr Names kDense[] = {
    {"lm_head.weight", "lm_head.weight"},
    {"model.language_model.embed_tokens.weight", "model.language_model.embed_tokens.weight"},
    {"model.language_model.norm.weight", "model.language_model.norm.weight"},
    {"model.language_model.layers.0.input_layernorm.weight", "model.language_model.layers.0.input_layernorm.weight"},
    {"model.language_model.layers.39.post_attention_layernorm.weight",
     "model.language_model.layers.39.post_attention_layernorm.weight"},
    {"model.language_model.layers.3.self_attn.q_proj.weight", "model.language_model.layers.3.self_attn.q_proj.weight"},
    {"model.language_model.layers.3.self_attn.k_proj.weight", "model.language_model.layers.3.self_attn.k_proj.weight"},
    {"model.language_model.layers.3.self_attn.v_proj.weight", "model.language_model.layers.3.self_attn.v_proj.weight"},
    {"model.language_model.layers.3.self_attn.o_proj.weight", "model.language_model.layers.3.self_attn.o_proj.weight"},
    {"model.language_model.layers.3.self_attn.q_norm.weight", "model.language_model.layers.3.self_attn.q_norm.weight"},
    {"model.language_model.layers.3.self_attn.k_norm.weight", "model.language_model.layers.3.self_attn.k_norm.weight"},
    {"model.language_model.layers.0.linear_attn.in_proj_qkv.weight",
     "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"},
    {"model.language_model.layers.0.linear_attn.in_proj_z.weight",
     "model.language_model.layers.0.linear_attn.in_proj_z.weight"},
    {"model.language_model.layers.0.linear_attn.in_proj_a.weight",
     "model.language_model.layers.0.linear_attn.in_proj_a.weight"},
    {"model.language_model.layers.0.linear_attn.in_proj_b.weight",
     "model.language_model.layers.0.linear_attn.in_proj_b.weight"},
    {"model.language_model.layers.0.linear_attn.conv1d.weight",
     "model.language_model.layers.0.linear_attn.conv1d.weight"},
    {"model.language_model.layers.0.linear_attn.norm.weight", "model.language_model.layers.0.linear_attn.norm.weight"},
    {"model.language_model.layers.0.linear_attn.out_proj.weight",
     "model.language_model.layers.0.linear_attn.out_proj.weight"},
    // rules 53, 54
    {"model.language_model.layers.0.linear_attn.A_log", "model.language_model.layers.0.linear_attn._fp32_params.A_log"},
    {"model.language_model.layers.38.linear_attn.dt_bias",
     "model.language_model.layers.38.linear_attn._fp32_params.dt_bias"},
    // rules 38, 47: the gate of the shared expert keeps its name
    {"model.language_model.layers.0.mlp.gate.weight", "model.language_model.layers.0.mlp.gate.weight"},
    {"model.language_model.layers.0.mlp.shared_expert.gate_proj.weight",
     "model.language_model.layers.0.mlp.shared_experts.gate_proj.weight"},
    {"model.language_model.layers.0.mlp.shared_expert.up_proj.weight",
     "model.language_model.layers.0.mlp.shared_experts.up_proj.weight"},
    {"model.language_model.layers.0.mlp.shared_expert.down_proj.weight",
     "model.language_model.layers.0.mlp.shared_experts.down_proj.weight"},
    {"model.language_model.layers.0.mlp.shared_expert_gate.weight",
     "model.language_model.layers.0.mlp.shared_expert_gate.weight"},
    {"model.visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.weight"},
    {"model.visual.patch_embed.proj.bias", "model.visual.patch_embed.proj.bias"},
    {"model.visual.pos_embed.weight", "model.visual.pos_embed.weight"},
    {"model.visual.blocks.26.norm1.weight", "model.visual.blocks.26.norm1.weight"},
    {"model.visual.blocks.26.attn.qkv.bias", "model.visual.blocks.26.attn.qkv.bias"},
    {"model.visual.blocks.26.attn.proj.weight", "model.visual.blocks.26.attn.proj.weight"},
    {"model.visual.blocks.26.mlp.linear_fc1.weight", "model.visual.blocks.26.mlp.linear_fc1.weight"},
    {"model.visual.merger.norm.bias", "model.visual.merger.norm.bias"},
    {"model.visual.merger.linear_fc2.weight", "model.visual.merger.linear_fc2.weight"},
    // rule 34
    {"mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
    {"mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
    {"mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"},
    {"mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"},
    {"mtp.layers.0.input_layernorm.weight", "mtp.layers.0.input_layernorm.weight"},
    {"mtp.layers.0.self_attn.q_proj.weight", "mtp.layers.0.self_attn.q_proj.weight"},
    {"mtp.layers.0.mlp.gate.weight", "mtp.layers.0.mlp.gate.weight"},
    {"mtp.layers.0.mlp.shared_expert.up_proj.weight", "mtp.layers.0.mlp.shared_experts.up_proj.weight"},
    {"mtp.layers.0.mlp.shared_expert_gate.weight", "mtp.layers.0.mlp.shared_expert_gate.weight"},
};

// Rules 1, 3, 5, 35, 46
constexpr Names kStacked[] = {
    {"model.language_model.layers.0.mlp.experts.gate_up_proj",
     "model.language_model.layers.0.mlp.experts.gate_and_up_projs"},
    {"model.language_model.layers.0.mlp.experts.down_proj", "model.language_model.layers.0.mlp.experts.down_projs"},
    {"model.language_model.layers.39.mlp.experts.gate_up_proj",
     "model.language_model.layers.39.mlp.experts.gate_and_up_projs"},
    {"mtp.layers.0.mlp.experts.gate_up_proj", "mtp.layers.0.mlp.experts.gate_and_up_projs"},
    {"mtp.layers.0.mlp.experts.down_proj", "mtp.layers.0.mlp.experts.down_projs"},
};

KeyTable const& table() { return qwen3_5_moe().keys; }

// The FQN of a key, and for experts what they are.
std::string fqn_of(std::string_view hf_key, std::string_view prefix) {
  auto const mapping = from_hf(table(), hf_key, prefix);
  if (mapping.stacked == nullptr) return mapping.fqn;
  if (!mapping.split) return mapping.fqn + " (all)";
  return mapping.fqn + " (" + std::to_string(mapping.split->expert) + ", " + std::to_string(mapping.split->matrix) +
         ")";
}

std::string_view prefix_of(std::vector<std::string> const& keys) {
  std::vector<CatalogTensor> tensors;
  for (auto const& key : keys) tensors.push_back({.name = key, .dtype = DType::BF16, .shape = {1}, .extent = {}});
  return find_prefix(table(), tensors);
}

std::string all(std::string_view fqn) { return std::string(fqn) + " (all)"; }

TEST(Qwen35Moe, Rules34And38And47And53_EveryDenseKeyHasItsNativeNameAndBack) {
  for (auto const& [hf, fqn] : kDense) {
    EXPECT_EQ(fqn_of(hf, "model."), fqn);
    EXPECT_EQ(to_hf(table(), fqn), hf);
  }
}

// A header may be 100 MB, and all of it one name. Renaming its parts in place took time with the square of its length.
TEST(Qwen35Moe, Rules38And47_ANameOfSixteenMillionBytesIsRenamedAtOnce) {
  std::string hf = "x", fqn = "x";
  while (hf.size() < 16'000'000) {
    hf += ".mlp.shared_expert.";
    fqn += ".mlp.shared_experts.";
  }
  EXPECT_TRUE(from_hf(table(), hf, "").fqn == fqn);  // not EXPECT_EQ, which would print them
  EXPECT_TRUE(to_hf(table(), fqn) == hf);
}

TEST(Qwen35Moe, Rules3And35And46_StackedExpertsSwapTheirAxesInBothDirections) {
  for (auto const& [hf, fqn] : kStacked) {
    EXPECT_EQ(fqn_of(hf, "model."), all(fqn));
    EXPECT_EQ(to_hf(table(), fqn), hf);
  }
}

TEST(Qwen35Moe, Rule32_PrefixIsTakenFromKeysOutsideTheMtp) {
  EXPECT_EQ(prefix_of({"lm_head.weight", "model.visual.pos_embed.weight"}), "model.");
  EXPECT_EQ(prefix_of({"language_model.norm.weight", "model.lm_head.weight"}), "model.");
  EXPECT_EQ(prefix_of({"language_model.norm.weight", "mtp.fc.weight"}), "");
  EXPECT_EQ(prefix_of({"language_model.norm.weight", "model.mtp.fc.weight"}), "");  // rule 43: read as mtp.
  EXPECT_EQ(prefix_of({}), "");
}

TEST(Qwen35Moe, Rule35_ExpertKeysOfEverySpellingGetThePrefixAndTheLanguageModel) {
  for (auto const* key :
       {"model.language_model.layers.7.mlp.experts.down_proj", "language_model.layers.7.mlp.experts.down_proj",
        "model.layers.7.mlp.experts.down_proj", "layers.7.mlp.experts.down_proj"}) {
    EXPECT_EQ(fqn_of(key, "model."), all("model.language_model.layers.7.mlp.experts.down_projs")) << key;
    EXPECT_EQ(fqn_of(key, ""), all("language_model.layers.7.mlp.experts.down_projs")) << key;
  }
  EXPECT_EQ(fqn_of("mtp.layers.7.mlp.experts.down_proj", "model."), all("mtp.layers.7.mlp.experts.down_projs"));
}

TEST(Qwen35Moe, Rule35_OnlyWholeKeysAreExperts) {
  for (auto const* key :
       {"model.language_model.layers.0.mlp.experts.down_proj.weight",
        "model.language_model.layers.0.mlp.experts.down_projs_extra",
        "model.language_model.layers.x.mlp.experts.down_proj", "model.language_model.layers..mlp.experts.down_proj",
        "model.visual.layers.0.mlp.experts.down_proj"}) {
    EXPECT_EQ(fqn_of(key, "model."), key) << key;
  }
}

TEST(Qwen35Moe, Rules33And36_AnExpertsMatricesLeadToTheirParameterAndPlace) {
  std::string const decoder = "model.language_model.layers.12.mlp.experts.";
  std::string const mtp = "mtp.layers.0.mlp.experts.";
  for (std::string const at : {"model.language_model.layers.12.mlp.experts.", "language_model.layers.12.mlp.experts.",
                               "model.layers.12.mlp.experts.", "layers.12.mlp.experts."}) {
    EXPECT_EQ(fqn_of(at + "3.gate_proj.weight", "model."), decoder + "gate_and_up_projs (3, 0)");
    EXPECT_EQ(fqn_of(at + "255.up_proj.weight", "model."), decoder + "gate_and_up_projs (255, 1)");
    EXPECT_EQ(fqn_of(at + "0.down_proj.weight", "model."), decoder + "down_projs (0, 0)");
  }
  for (std::string const at : {"mtp.layers.0.mlp.experts.", "model.mtp.layers.0.mlp.experts."}) {
    EXPECT_EQ(fqn_of(at + "3.gate_proj.weight", "model."), mtp + "gate_and_up_projs (3, 0)");
    EXPECT_EQ(fqn_of(at + "3.up_proj.weight", "model."), mtp + "gate_and_up_projs (3, 1)");
    EXPECT_EQ(fqn_of(at + "3.down_proj.weight", "model."), mtp + "down_projs (3, 0)");
  }
  EXPECT_EQ(fqn_of("mtp.layers.00.mlp.experts.007.down_proj.weight", "model."),
            "mtp.layers.00.mlp.experts.down_projs (7, 0)");
}

TEST(Qwen35Moe, Rules33And36_OnlyWholeKeysAreAnExpertsMatrices) {
  for (std::string const key :
       {"model.language_model.layers.0.mlp.experts.3.gate_proj.bias", "model.mlp.experts.3.gate_proj.weight",
        "model.language_model.layers.0.mlp.experts.x.gate_proj.weight",
        "mtp.layers.0.mlp.experts.3.gate_up_proj.weight",
        "model.language_model.layers.0.mlp.experts.3.gate_proj.weight.lora"}) {
    EXPECT_EQ(fqn_of(key, "model."), key);
  }
}

TEST(Qwen35Moe, AnExpertsNumberHasABound) {
  std::string const key = "mtp.layers.0.mlp.experts.4294967296.up_proj.weight";
  try {
    (void)from_hf(table(), key, "model.");
    ADD_FAILURE();
  } catch (FormatError const& error) {
    EXPECT_EQ(error.what(), key + ": 4294967296 is no expert's number");
    EXPECT_EQ(error.tensor, key);
  }
}

TEST(Qwen35Moe, Rule38_OtherKeysGetThePrefixOnlyWhenTheyLackIt) {
  EXPECT_EQ(fqn_of("language_model.norm.weight", "model."), "model.language_model.norm.weight");
  EXPECT_EQ(fqn_of("language_model.norm.weight", ""), "language_model.norm.weight");
  EXPECT_EQ(fqn_of("visual.pos_embed.weight", "model."), "model.visual.pos_embed.weight");
  EXPECT_EQ(fqn_of("mtp.anything.else", "model."), "mtp.anything.else");
  EXPECT_EQ(fqn_of("model.unknown", "model."), "model.unknown");
  EXPECT_EQ(fqn_of("language_model.layers.0.mlp.shared_expert.up_proj.weight", "model."),
            "model.language_model.layers.0.mlp.shared_experts.up_proj.weight");
}

TEST(Qwen35Moe, Rules38And49_TheHeadIsReadWithOrWithoutPrefixAndWrittenWithout) {
  EXPECT_EQ(fqn_of("model.lm_head.weight", "model."), "lm_head.weight");
  EXPECT_EQ(fqn_of("lm_head.weight", "model."), "lm_head.weight");
  EXPECT_EQ(to_hf(table(), "lm_head.weight"), "lm_head.weight");
}

TEST(Qwen35Moe, Rule43_AnMtpBehindThePrefixIsTheMtp) {
  EXPECT_EQ(fqn_of("model.mtp.fc.weight", "model."), "mtp.layers.0.eh_proj.weight");
  EXPECT_EQ(fqn_of("model.mtp.layers.0.mlp.experts.down_proj", "model."), all("mtp.layers.0.mlp.experts.down_projs"));
  EXPECT_EQ(fqn_of("model.mtp.layers.0.self_attn.q_proj.weight", "model."), "mtp.layers.0.self_attn.q_proj.weight");
}

TEST(Qwen35Moe, Rule44_OnlyWholeNamesOfMtpAreThoseOfItsExperts) {
  for (std::string const name : {"gate_and_up_projs", "down_projs"}) {
    auto const fqn = "mtp.layers.12.mlp.experts." + name;
    auto const found = find_stacked(table(), fqn);
    ASSERT_TRUE(found) << name;
    EXPECT_EQ(found->rule->stack, Stack::mtp);
    EXPECT_EQ(found->layer, "12");
    for (std::string const& other :
         {"model.mtp.layers.0.mlp.experts." + name, "mtp.layers.0.mlp.experts." + name + ".lora",
          "mtp.layers.x.mlp.experts." + name, "mtp.layers.0.mlp.experts.3." + name}) {
      EXPECT_FALSE(find_stacked(table(), other)) << other;
    }
    for (std::string const prefix : {"model.", ""}) {
      auto const decoder = find_stacked(table(), prefix + "language_model.layers.0.mlp.experts." + name);
      ASSERT_TRUE(decoder) << name;
      EXPECT_EQ(decoder->rule->stack, Stack::decoder);
    }
  }
}

TEST(Qwen35Moe, Rule46_ExpertNamesAreReplacedWhereverTheyStand) {
  EXPECT_EQ(to_hf(table(), "any.prefix.mlp.experts.gate_and_up_projs"), "any.prefix.mlp.experts.gate_up_proj");
  EXPECT_EQ(to_hf(table(), "layers.0.mlp.experts.down_projs.lora"), "layers.0.mlp.experts.down_proj.lora");
  EXPECT_EQ(to_hf(table(), "layers.0.experts.down_projs"), "layers.0.experts.down_projs");  // no `.mlp.`
}

TEST(Qwen35Moe, Rule48_TheFourMtpNamesAreTurnedBackForLayerZeroOnly) {
  EXPECT_EQ(to_hf(table(), "mtp.layers.0.eh_proj.weight"), "mtp.fc.weight");
  EXPECT_EQ(to_hf(table(), "mtp.layers.1.eh_proj.weight"), "mtp.layers.1.eh_proj.weight");
  EXPECT_EQ(to_hf(table(), "mtp.layers.0.eh_proj.weight.lora"), "mtp.layers.0.eh_proj.weight.lora");
}

TEST(Qwen35Moe, Rule52_UnknownKeysPassUnchanged) {
  EXPECT_EQ(to_hf(table(), "something.else"), "something.else");
  EXPECT_EQ(fqn_of("something.else", ""), "something.else");
}

TEST(Qwen35Moe, Rule53_TrackedKeysEndInTheNameAndStandBelowLinearAttention) {
  for (auto const* key : {"m.linear_attn.A_log", "m.linear_attn.xA_log", "m.linear_attn.deeper.dt_bias"}) {
    EXPECT_EQ(find_dtype_on_load(table(), key, DType::BF16), DType::F32) << key;
  }
  for (auto const* key : {"m.linear_attn.A_log_extra", "m.self_attn.A_log", "linear_attn.A_log",
                          "m.linear_attn.norm.weight", "m.linear_attn.in_proj_a.weight"}) {
    EXPECT_EQ(find_dtype_on_load(table(), key, DType::BF16), DType::BF16) << key;
    EXPECT_EQ(fqn_of(key, ""), key) << key;
  }
}

TEST(Qwen35Moe, Rule54_TheHolderIsInsertedOnceAfterTheLastLinearAttention) {
  EXPECT_EQ(fqn_of("a.linear_attn.b.linear_attn.c.A_log", ""), "a.linear_attn.b.linear_attn._fp32_params.c.A_log");
  EXPECT_EQ(fqn_of("a.linear_attn._fp32_params.A_log", ""), "a.linear_attn._fp32_params.A_log");
  EXPECT_EQ(to_hf(table(), "a.linear_attn._fp32_params.A_log"), "a.linear_attn.A_log");
  EXPECT_EQ(fqn_of("mtp.layers.0.linear_attn.dt_bias", ""),
            "mtp.layers.0.linear_attn._fp32_params.dt_bias");  // rule 39
}

TEST(Qwen35Moe, Rule39_AllThatIsNotExpertsGoesThroughTheHolderAndNothingElseIsCast) {
  for (auto const& [hf, fqn] : {
           Names{"mtp.layers.0.linear_attn.A_log", "mtp.layers.0.linear_attn._fp32_params.A_log"},
           Names{"model.mtp.layers.0.linear_attn.A_log", "mtp.layers.0.linear_attn._fp32_params.A_log"},
           Names{"layers.0.linear_attn.dt_bias", "model.layers.0.linear_attn._fp32_params.dt_bias"},
           Names{"model.layers.0.mlp.shared_expert.linear_attn.A_log",
                 "model.layers.0.mlp.shared_experts.linear_attn._fp32_params.A_log"},
           Names{"model.lm_head.linear_attn.A_log", "lm_head.linear_attn._fp32_params.A_log"},
       }) {
    EXPECT_EQ(fqn_of(hf, "model."), fqn);
    EXPECT_EQ(find_dtype_on_load(table(), hf, DType::BF16), DType::F32);
  }
  for (auto const& [hf, fqn] : kDense) {
    if (fqn.find("_fp32_params") != std::string_view::npos) continue;
    for (auto const dtype : {DType::BF16, DType::F16, DType::F32, DType::F64, DType::I64}) {
      EXPECT_EQ(find_dtype_on_load(table(), hf, dtype), dtype) << hf;
    }
  }
}

TEST(Qwen35Moe, Rules55And57_TrackedFloatsLoadAsF32AndIntegersStay) {
  auto const* const key = "model.language_model.layers.0.linear_attn.dt_bias";
  for (auto const dtype : {DType::BF16, DType::F16, DType::F32}) {
    EXPECT_EQ(find_dtype_on_load(table(), key, dtype), DType::F32);
  }
  for (auto const dtype : {DType::I8, DType::U8, DType::I16, DType::I32, DType::I64, DType::U64, DType::BOOL}) {
    EXPECT_EQ(find_dtype_on_load(table(), key, dtype), dtype);
  }
}

TEST(Qwen35Moe, Rule57_TrackedFloatsThatDoNotFitF32AreRefused) {
  std::string const key = "model.language_model.layers.0.linear_attn.A_log";
  for (auto const dtype : {DType::F64, DType::F8_E4M3, DType::F8_E5M2, DType::F8_E8M0, DType::F4}) {
    try {
      (void)find_dtype_on_load(table(), key, dtype);
      ADD_FAILURE() << name(dtype) << " was accepted";
    } catch (FormatError const& error) {
      EXPECT_EQ(error.tensor, key);
      EXPECT_THAT(error.what(), testing::HasSubstr(std::string(name(dtype))));
    }
  }
}

TEST(KeyPattern, PlacesTakeDigitsAndBracketsMayBeAbsent) {
  EXPECT_EQ(match_key("[a.]x.{L}.e.{X}", "a.x.12.e.034"), (KeyPlaces{.layer = "12", .expert = "034"}));
  EXPECT_EQ(match_key("[a.]x.{L}.e.{X}", "x.0.e.1"), (KeyPlaces{.layer = "0", .expert = "1"}));
  EXPECT_EQ(match_key("x[.a]", "x"), KeyPlaces{});
  for (auto const* key : {"", "b.x.1.e.2", "a.a.x.1.e.2", "x.1.e.", "x..e.2", "x.-1.e.2", "x.1.e.2 ", "x.1.e.2.z"}) {
    EXPECT_EQ(match_key("[a.]x.{L}.e.{X}", key), std::nullopt) << key;
  }
}

TEST(KeyPattern, AnAbsentPartIsTriedWhenThePresentOneDoesNotFit) {
  EXPECT_TRUE(match_key("[a.]a.b", "a.b"));
  EXPECT_TRUE(match_key("[a.]a.b", "a.a.b"));
}

TEST(KeyPattern, FillingIsTheInverseOfMatching) {
  EXPECT_EQ(fill_key("x.{L}.e.{X}.z", {.layer = "12", .expert = "3"}), "x.12.e.3.z");
  EXPECT_EQ(after_layer("x.{L}.mlp.down"), ".mlp.down");
  EXPECT_EQ(after_layer("[a.]x.{L}.e.{X}.z"), ".e.{X}.z");
  EXPECT_EQ(up_to_layer("[a.]x.{L}.e.{X}.z"), "[a.]x.{L}");
}

// Rules 33, 35, 36
TEST(StackedKeys, AKeyIsTakenApartAsItIsSpelled) {
  auto const up = match_stacked(qwen3_5_moe().keys, "model.layers.012.mlp.experts.3.up_proj.weight").value();
  EXPECT_EQ(up.rule->stack, Stack::decoder);
  EXPECT_EQ(up.rule->projection, Projection::gate_up);
  EXPECT_EQ(up.up_to_layer, "model.layers.012");
  EXPECT_EQ(up.layer, "012");
  EXPECT_EQ(up.split, (ExpertMatrix{.expert = 3, .matrix = 1}));
  auto const down = match_stacked(qwen3_5_moe().keys, "model.mtp.layers.0.mlp.experts.down_proj").value();
  EXPECT_EQ(down.rule->stack, Stack::mtp);
  EXPECT_EQ(down.rule->projection, Projection::down);
  EXPECT_EQ(down.up_to_layer, "model.mtp.layers.0");
  EXPECT_EQ(down.split, std::nullopt);
  for (auto const* key : {"model.layers.0.mlp.gate.weight", "draft.layers.0.mlp.experts.down_proj",
                          "model.layers.0.mlp.experts.down_projs", "model.layers.0.mlp.experts.down_proj.lora"}) {
    EXPECT_FALSE(match_stacked(qwen3_5_moe().keys, key)) << key;
  }
}

}  // namespace
}  // namespace rankslice
