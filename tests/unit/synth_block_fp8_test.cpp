#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "synth/model_shapes.hpp"
#include "synth/presets.hpp"

namespace rankslice {
namespace {

using Tensors = std::vector<SafetensorsHeader::Tensor>;

Tensors fp8_tensors(std::string_view family, std::string_view preset) {
  auto model = find_preset(family, preset).model;
  model.quantization = SynthQuantization::fp8;
  return model_tensors(model);
}

bool is_scale(SafetensorsHeader::Tensor const& tensor) { return tensor.name.ends_with("_scale_inv"); }

std::uint64_t elements_of(Tensors const& tensors) {
  std::uint64_t elements = 0;
  for (auto const& tensor : tensors) elements += element_count(tensor.shape);
  return elements;
}

SafetensorsHeader::Tensor const& named(Tensors const& tensors, std::string_view name) {
  auto const found = std::ranges::find(tensors, name, &SafetensorsHeader::Tensor::name);
  if (found == tensors.end()) throw std::out_of_range(std::string(name));
  return *found;
}

// adapters.md D: 30,720 expert weights, 30,720 scales and 250 other scales = 30·3 + 10·4 + 40·3.
TEST(BlockFp8, Rule60_OfTheReal35BHasTheScalesOfTheRelease) {
  std::map<std::string, std::size_t> counts;
  for (auto const& tensor : fp8_tensors("auto", "qwen3.5-35b-a3b")) {
    auto const in_experts = tensor.name.find(".mlp.experts.") != std::string::npos;
    auto const in_decoder = tensor.name.starts_with("model.language_model.");
    if (is_scale(tensor)) {
      ++counts[in_experts ? "expert scales" : "other scales"];
      ASSERT_EQ(tensor.dtype, DType::BF16) << tensor.name;
    } else if (in_experts && in_decoder) {
      ++counts["expert weights"];
      ASSERT_EQ(tensor.dtype, DType::F8_E4M3) << tensor.name;
    } else if (tensor.dtype == DType::F8_E4M3) {
      ++counts["other weights"];
    }
  }
  EXPECT_EQ(counts,
            (std::map<std::string, std::size_t>{
                {"expert weights", 30720}, {"expert scales", 30720}, {"other weights", 250}, {"other scales", 250}}));
}

// What those who looked at the files report of Qwen3-30B-A3B-FP8: 37,491 tensors of 30,533,947,392 elements.
TEST(BlockFp8, OfTheRealQwen3MoeHasTheTensorsOfTheRelease) {
  auto const tensors = fp8_tensors("auto", "qwen3-30b-a3b");
  EXPECT_EQ(tensors.size(), 37'491U);
  EXPECT_EQ(elements_of(tensors), 30'533'947'392U);
  auto const expert = std::string("model.layers.0.mlp.experts.0.down_proj.weight");
  EXPECT_EQ(named(tensors, expert).dtype, DType::F8_E4M3);
  EXPECT_EQ(named(tensors, expert + "_scale_inv").dtype, DType::BF16);
  EXPECT_EQ(named(tensors, expert + "_scale_inv").shape, (Shape{16, 6}));
}

// … and of Qwen3-Next-80B-A3B-Instruct-FP8: 151,479 of 81,329,784,384. Its scales are F32, its MTP block is in FP8 too.
TEST(BlockFp8, OfTheRealQwen3NextHasTheTensorsOfTheRelease) {
  auto const tensors = fp8_tensors("auto", "qwen3-next-80b-a3b");
  EXPECT_EQ(tensors.size(), 151'479U);
  EXPECT_EQ(elements_of(tensors), 81'329'784'384U);
  for (auto const& tensor : tensors) {
    ASSERT_EQ(tensor.dtype == DType::F32, is_scale(tensor)) << tensor.name;
  }
  EXPECT_EQ(named(tensors, "model.layers.0.linear_attn.in_proj_qkvz.weight_scale_inv").shape, (Shape{96, 16}));
  EXPECT_EQ(named(tensors, "mtp.layers.0.self_attn.q_proj.weight_scale_inv").shape, (Shape{64, 16}));
  EXPECT_EQ(named(tensors, "mtp.layers.0.mlp.experts.511.up_proj.weight_scale_inv").shape, (Shape{4, 16}));
  EXPECT_EQ(named(tensors, "model.layers.0.linear_attn.in_proj_ba.weight").dtype, DType::BF16);
  EXPECT_EQ(named(tensors, "mtp.fc.weight").dtype, DType::BF16);
}

// Rules 4, 58: ceil(rows / 128) × ceil(columns / 128), here of [256, 96] and of partial blocks.
TEST(BlockFp8, Rule58_HasAScaleForEveryBlockThoseAtTheEdgesIncluded) {
  auto const tensors = fp8_tensors("qwen3_5_moe", "tiny");
  auto const layer = std::string("model.language_model.layers.0.");
  auto const scales = [&](std::string const& key) { return named(tensors, layer + key + "_scale_inv").shape; };
  EXPECT_EQ(scales("mlp.experts.7.down_proj.weight"), (Shape{2, 1}));
  EXPECT_EQ(scales("mlp.experts.7.gate_proj.weight"), (Shape{1, 2}));
  EXPECT_EQ(scales("mlp.shared_expert.up_proj.weight"), (Shape{1, 2}));
  EXPECT_EQ(scales("linear_attn.in_proj_qkv.weight"), (Shape{4, 2}));
}

// Rule 23, "Ours": grouped, each expert with scales of its own.
TEST(BlockFp8, Rule23_OfQwen3VlKeepsExpertsGrouped) {
  auto const tensors = fp8_tensors("qwen3_vl_moe", "tiny");
  auto const experts = std::string("model.language_model.layers.0.mlp.experts.");
  EXPECT_EQ(named(tensors, experts + "gate_up_proj").shape, (Shape{8, 256, 192}));
  EXPECT_EQ(named(tensors, experts + "gate_up_proj").dtype, DType::F8_E4M3);
  EXPECT_EQ(named(tensors, experts + "gate_up_proj_scale_inv").shape, (Shape{8, 2, 2}));
  EXPECT_EQ(named(tensors, experts + "down_proj_scale_inv").shape, (Shape{8, 1, 2}));
  EXPECT_EQ(named(tensors, "model.language_model.layers.0.self_attn.o_proj.weight_scale_inv").shape, (Shape{2, 4}));
}

TEST(BlockFp8, ChangesNothingButTheDtypeOfWeightsAndPutsScalesRightAfterThem) {
  for (auto const* family : {"qwen3_5_moe", "qwen3_vl_moe", "qwen3_moe", "qwen3_next"}) {
    auto model = find_preset(family, "tiny").model;
    if (model.family == SynthFamily::qwen3_5_moe) model.decoder_experts = ExpertForm::split;
    auto const plain = model_tensors(model);
    auto at = plain.begin();
    std::string before;
    for (auto const& tensor : fp8_tensors(family, "tiny")) {
      if (is_scale(tensor)) {
        EXPECT_EQ(tensor.name, before + "_scale_inv");
      } else {
        ASSERT_NE(at, plain.end());
        EXPECT_EQ(tensor.name, at->name);
        EXPECT_EQ(tensor.shape, at->shape);
        EXPECT_TRUE(tensor.dtype == at->dtype || tensor.dtype == DType::F8_E4M3) << tensor.name;
        ++at;
      }
      before = tensor.name;
    }
    EXPECT_EQ(at, plain.end()) << family;
  }
}

TEST(BlockFp8, LeavesWhatTheReleasesLeave) {
  for (auto const* family : {"qwen3_5_moe", "qwen3_vl_moe", "qwen3_moe", "qwen3_next"}) {
    for (auto const& tensor : fp8_tensors(family, "tiny")) {
      for (auto const* part : {"norm", "embed", "lm_head", "visual", "mlp.gate.", "expert_gate", "conv1d", "in_proj_a",
                               "in_proj_b", "A_log", "dt_bias", "mtp.fc"}) {
        if (tensor.name.find(part) == std::string::npos) continue;
        EXPECT_NE(tensor.dtype, DType::F8_E4M3) << tensor.name;
        EXPECT_FALSE(is_scale(tensor)) << tensor.name;
      }
    }
  }
}

}  // namespace
}  // namespace rankslice
