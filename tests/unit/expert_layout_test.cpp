#include "model/expert_layout.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "model/map_tensors.hpp"
#include "model/qwen3_5_moe.hpp"
#include "model/qwen3_vl_moe.hpp"
#include "support/model_catalog.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::make_vl_catalog;
using test::make_vl_config;
using test::tensor_named;
using testing::AllOf;
using testing::HasSubstr;

constexpr auto kAuto = ExpertLayout::automatic;
constexpr auto kHub = ExpertLayout::hub;
constexpr auto kTransformers = ExpertLayout::transformers;

std::string const kAt = "model.language_model.layers.0.mlp.experts.";
std::string const kFirst = kAt + "gate_up_proj";
std::string const kFirstDown = kAt + "down_proj";

test::QwenVlShape sized(std::uint64_t hidden, std::uint64_t intermediate, ExpertLayout layout) {
  auto shape = test::tiny_qwen_vl();
  shape.hidden = hidden;
  shape.intermediate = intermediate;
  shape.layout = layout;
  return shape;
}

ModelConfig without_sizes() {
  ModelConfig config;
  config.model_type = "qwen3_vl_moe";
  return config;
}

Model map(TensorCatalog const& catalog, ModelConfig const& config, ExpertLayout requested = kAuto) {
  std::vector<std::string> warnings;
  return map_tensors(qwen3_vl_moe(), catalog, config, {.expert_layout = requested}, warnings);
}

test::Refusal refusal(TensorCatalog const& catalog, ModelConfig const& config, ExpertLayout requested = kAuto) {
  return test::refusal_of([&] { (void)map(catalog, config, requested); });
}

// Layout and native shapes are those of rules 1 and 2, in every layer.
void expect_native(Model const& model, test::QwenVlShape const& shape) {
  auto const layout = shape.layout == kHub ? Layout::same : Layout::swapped;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts) continue;
    EXPECT_EQ(parameter.layout, layout) << parameter.fqn;
    auto const native = parameter.fqn.ends_with(".down_projs") ? Shape{4, shape.intermediate, shape.hidden}
                                                               : Shape{4, shape.hidden, 2 * shape.intermediate};
    EXPECT_EQ(parameter.shape, native) << parameter.fqn;
  }
}

TEST(ExpertLayout, Rule61_EveryTensorsShapeTellsByTheSizesOfConfigJson) {
  for (auto const layout : {kHub, kTransformers}) {
    for (std::uint64_t hidden = 1; hidden <= 12; ++hidden) {
      for (std::uint64_t intermediate = 1; intermediate <= 12; ++intermediate) {
        auto const shape = sized(hidden, intermediate, layout);
        auto const catalog = make_vl_catalog(shape);
        for (auto const& config : {make_vl_config(shape), without_sizes()}) {
          if (hidden == intermediate || hidden == 2 * intermediate) {
            EXPECT_EQ(refusal(catalog, config).code, ExitCode::usage) << hidden << " " << intermediate;
          } else {
            expect_native(map(catalog, config), shape);
          }
          expect_native(map(catalog, config, layout), shape);
        }
      }
    }
  }
}

TEST(ExpertLayout, Rule61_PartOfTheSizesAreEnough) {
  for (auto const layout : {kHub, kTransformers}) {
    auto const shape = sized(12, 8, layout);
    for (int said = 0; said < 8; ++said) {
      auto config = without_sizes();
      if ((said & 1) != 0) config.experts = 4;
      if ((said & 2) != 0) config.hidden = 12;
      if ((said & 4) != 0) config.intermediate = 8;
      expect_native(map(make_vl_catalog(shape), config), shape);
    }
  }
}

TEST(ExpertLayout, Rule61_AShapeThatIsNoEvidenceDemandsTheFlag) {
  auto const twice = sized(16, 8, kHub);
  auto const refused = refusal(make_vl_catalog(twice), make_vl_config(twice));
  EXPECT_EQ(refused.message, "model.safetensors: " + kFirst +
                                 ": the shape [4, 16, 16] does not tell whether it is the Hub's [E, H, 2I] or "
                                 "transformers' [E, 2I, H]; E is 4 by config.json's num_experts, H is 16 by "
                                 "config.json's hidden_size, I is 8 by config.json's moe_intermediate_size: say which "
                                 "with --expert-layout hub|transformers");
  EXPECT_EQ(refused.code, ExitCode::usage);
  EXPECT_EQ(refused.tensor, kFirst);
  EXPECT_EQ(refused.file, "model.safetensors");
  auto const equal = sized(8, 8, kTransformers);
  auto const down = refusal(make_vl_catalog(equal), make_vl_config(equal));
  EXPECT_THAT(down.message, AllOf(HasSubstr("[E, I, H]"), HasSubstr("[E, H, I]"), HasSubstr("[4, 8, 8]")));
  EXPECT_EQ(down.code, ExitCode::usage);
  EXPECT_EQ(down.tensor, kFirstDown);
}

TEST(ExpertLayout, Rule61_AFlagThatAShapeContradictsIsRefused) {
  for (auto const layout : {kHub, kTransformers}) {
    auto const other = layout == kHub ? kTransformers : kHub;
    auto const shape = sized(12, 8, layout);
    auto const refused = refusal(make_vl_catalog(shape), make_vl_config(shape), other);
    std::string const hub = "[4, 12, 16]";
    std::string const transformers = "[4, 16, 12]";
    auto const expected = other == kHub ? hub + " = [E, H, 2I] by --expert-layout hub, found " + transformers
                                        : transformers + " = [E, 2I, H] by --expert-layout transformers, found " + hub;
    EXPECT_THAT(refused.message,
                HasSubstr("model.safetensors: " + kFirst + ": expected the shape " + expected + "; E"));
    EXPECT_EQ(refused.code, ExitCode::bad_data);
    EXPECT_EQ(refused.tensor, kFirst);
    // Without sizes the flag decides what they are, until the partner contradicts it.
    EXPECT_EQ(refusal(make_vl_catalog(shape), without_sizes(), other).tensor, kFirstDown);
  }
  // One square tensor follows any flag, its partner does not.
  auto const twice = sized(16, 8, kHub);
  EXPECT_EQ(refusal(make_vl_catalog(twice), make_vl_config(twice), kTransformers).tensor, kFirstDown);
}

TEST(ExpertLayout, Rule61_TwoLayoutsInOneCheckpointAreRefused) {
  auto catalog = make_vl_catalog(sized(12, 8, kHub));
  std::string const key = "model.language_model.layers.1.mlp.experts.down_proj";
  tensor_named(catalog, key).shape = {4, 12, 8};
  for (auto const& config : {make_vl_config(sized(12, 8, kHub)), without_sizes()}) {
    auto const refused = refusal(catalog, config);
    EXPECT_EQ(refused.message, "model.safetensors: " + key + ": expected the hub layout, as " + kFirst +
                                   " has it, found the transformers layout");
    EXPECT_EQ(refused.tensor, key);
    EXPECT_EQ(refused.code, ExitCode::bad_data);
  }
}

TEST(ExpertLayout, Rule61_AShapeOfNeitherLayoutIsRefusedWithBoth) {
  for (auto const& wrong : {Shape{3, 12, 16}, Shape{4, 12, 8}, Shape{4, 13, 16}, Shape{4, 0, 16}}) {
    auto catalog = make_vl_catalog(sized(12, 8, kHub));
    tensor_named(catalog, kFirst).shape = wrong;
    auto const refused = refusal(catalog, make_vl_config(sized(12, 8, kHub)));
    EXPECT_THAT(refused.message, HasSubstr(kFirst +
                                           ": expected the shape [4, 12, 16] = [E, H, 2I] (hub) or "
                                           "[4, 16, 12] = [E, 2I, H] (transformers), found " +
                                           to_string(wrong) + "; E is 4"));
    EXPECT_EQ(refused.code, ExitCode::bad_data);
  }
  auto catalog = make_vl_catalog(sized(12, 8, kHub));
  tensor_named(catalog, kFirst).shape = {4, 13, 16};
  EXPECT_EQ(refusal(catalog, without_sizes()).message,
            "model.safetensors: " + kFirst +
                ": expected [E, H, 2I] beside [E, I, H], or [E, 2I, H] beside [E, H, I]; found [4, 13, 16] beside "
                "[4, 8, 12] of " +
                kFirstDown);
}

TEST(ExpertLayout, Rule61_AnUnknownSizeWithoutAPartnerProvesNothing) {
  auto catalog = make_vl_catalog(sized(12, 8, kHub));
  std::erase_if(catalog.tensors, [](auto const& tensor) { return tensor.name.ends_with(".experts.down_proj"); });
  auto config = without_sizes();
  config.partial = true;  // a selection
  auto const refused = refusal(catalog, config);
  EXPECT_EQ(refused.code, ExitCode::usage);
  EXPECT_THAT(refused.message, AllOf(HasSubstr(kFirst), HasSubstr("E is 4 by " + kFirst + ", H is not known"),
                                     HasSubstr("--expert-layout hub|transformers")));
  EXPECT_EQ(map(catalog, config, kHub).parameters.size(), catalog.tensors.size());
}

TEST(ExpertLayout, Rule61_Qwen35NeedsNoFlagAndTakesAny) {
  auto const shape = test::tiny_qwen35();  // 2I == H
  std::vector<std::string> warnings;
  for (auto const requested : {kAuto, kHub, kTransformers}) {
    auto const model = map_tensors(qwen3_5_moe(), test::make_catalog(shape), test::make_config(shape),
                                   {.expert_layout = requested}, warnings);
    for (auto const& parameter : model.parameters) {
      EXPECT_EQ(parameter.layout, parameter.stacked_experts ? Layout::swapped : Layout::same) << parameter.fqn;
    }
  }
}

TEST(ExpertLayout, NativeShapesTellTheLayoutThatTheyCameFrom) {
  for (auto const layout : {kHub, kTransformers}) {
    for (auto const& [hidden, intermediate] : {std::pair{12U, 8U}, {16U, 8U}, {8U, 8U}}) {
      auto const shape = sized(hidden, intermediate, layout);
      auto const catalog = make_vl_catalog(shape);
      auto const model = map(catalog, make_vl_config(shape), layout);
      std::map<std::string_view, Shape> native;
      for (auto const& parameter : model.parameters) native.emplace(parameter.fqn, parameter.shape);
      EXPECT_EQ(find_expert_layout(qwen3_vl_moe(), catalog, native), layout) << hidden << " " << intermediate;
      EXPECT_EQ(find_expert_layout(qwen3_vl_moe(), catalog, {}), kAuto);
    }
  }
  auto const shape = test::tiny_qwen35();
  std::map<std::string_view, Shape> native;
  auto const model = make_model(shape);
  for (auto const& parameter : model.parameters) native.emplace(parameter.fqn, parameter.shape);
  EXPECT_EQ(find_expert_layout(qwen3_5_moe(), test::make_catalog(shape), native), kAuto);
}

}  // namespace
}  // namespace rankslice
