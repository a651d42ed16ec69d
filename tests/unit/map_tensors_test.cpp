#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "model/qwen3_5_moe.hpp"
#include "support/model_catalog.hpp"
#include "support/refusal.hpp"

namespace rankslice {
namespace {

using test::append_tensor;
using test::make_catalog;
using test::make_config;
using test::make_model;
using test::map_tensors;
using test::parameter_of;
using test::remove_tensor;
using test::tensor_named;
using test::tensor_of;
using test::tiny_qwen35;
using testing::HasSubstr;

std::string const kGateUp = "model.language_model.layers.2.mlp.experts.gate_up_proj";
std::string const kDown = "model.language_model.layers.2.mlp.experts.down_proj";
std::string const kMtpGateUp = "mtp.layers.0.mlp.experts.gate_up_proj";
std::string const kMtpDown = "mtp.layers.0.mlp.experts.down_proj";

// Spoil the tiny checkpoint (E = 4, H = 16, I = 8, 4 layers, 1 MTP layer), and say how it is refused.
test::Refusal refusal(std::function<void(TensorCatalog&, ModelConfig&)> const& spoil) {
  auto catalog = make_catalog(tiny_qwen35());
  auto config = make_config(tiny_qwen35());
  spoil(catalog, config);
  return test::refusal_of([&] { (void)map_tensors(qwen3_5_moe(), catalog, config); });
}

ModelConfig without_sizes() {
  ModelConfig config;
  config.model_type = "qwen3_5_moe";
  return config;
}

TEST(MapTensors, KeepsTheOrderAndTheSpellingOfTheCatalog) {
  auto catalog = make_catalog(tiny_qwen35());
  tensor_named(catalog, "lm_head.weight").name = "model.lm_head.weight";
  for (auto& tensor : catalog.tensors) {
    if (tensor.name.starts_with("mtp.")) tensor.name.insert(0, "model.");
  }
  auto const model = map_tensors(qwen3_5_moe(), catalog, make_config(tiny_qwen35()));
  ASSERT_EQ(model.tensors.size(), catalog.tensors.size());
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    EXPECT_EQ(model.tensors[i].key, catalog.tensors[i].name);
    EXPECT_EQ(model.tensors[i].dtype, catalog.tensors[i].dtype);
    EXPECT_EQ(model.tensors[i].shape, catalog.tensors[i].shape);
  }
  EXPECT_EQ(parameter_of(model, "model.lm_head.weight").fqn, "lm_head.weight");
  EXPECT_EQ(parameter_of(model, "model.mtp.fc.weight").fqn, "mtp.layers.0.eh_proj.weight");
}

TEST(MapTensors, AGroupedTensorIsAllOfItsParameter) {
  auto const model = make_model(tiny_qwen35());
  ASSERT_EQ(model.parameters.size(), model.tensors.size());
  for (std::uint32_t i = 0; i < model.tensors.size(); ++i) {
    auto const& tensor = model.tensors[i];
    auto const& parameter = model.parameters[tensor.parameter];
    EXPECT_EQ(parameter.tensors, std::vector{i}) << tensor.key;
    EXPECT_EQ(parameter.hf_dtype, tensor.dtype) << tensor.key;
    auto const stacked = tensor.key.find(".mlp.experts.") != std::string::npos;
    EXPECT_EQ(parameter.stacked_experts, stacked) << tensor.key;
    EXPECT_EQ(tensor.experts, (stacked ? Range{0, 4} : Range{0, 1})) << tensor.key;
    EXPECT_EQ(tensor.columns, (stacked ? Range{0, 16} : Range{0, 1})) << tensor.key;  // 2I = H = 16
  }
}

TEST(MapTensors, EveryNameOfTheTinyModelLeadsBackToItsKey) {
  auto const model = make_model(tiny_qwen35());
  for (auto const& tensor : model.tensors) {
    EXPECT_EQ(to_hf(qwen3_5_moe().keys, model.parameters[tensor.parameter].fqn), tensor.key);
  }
}

TEST(MapTensors, Rules1And3_StackedExpertsSwapAxes1And2) {
  auto const model = make_model(tiny_qwen35());
  auto const& gate_up = parameter_of(model, kGateUp);
  EXPECT_TRUE(gate_up.stacked_experts);
  EXPECT_EQ(gate_up.layout, Layout::swapped);
  EXPECT_EQ(tensor_of(model, kGateUp).shape, (Shape{4, 16, 16}));  // [E, 2I, H]
  auto const& down = parameter_of(model, kDown);
  EXPECT_EQ(tensor_of(model, kDown).shape, (Shape{4, 16, 8}));  // [E, H, I]
  EXPECT_EQ(down.shape, (Shape{4, 8, 16}));                     // [E, I, H]
  EXPECT_EQ(down.dtype, DType::BF16);
  EXPECT_EQ(parameter_of(model, kMtpDown).shape, (Shape{4, 8, 16}));  // rule 5
}

TEST(MapTensors, DenseTensorsKeepTheirShape) {
  std::string const key = "model.language_model.layers.0.linear_attn.conv1d.weight";
  auto const model = make_model(tiny_qwen35());
  auto const& conv = parameter_of(model, key);
  EXPECT_FALSE(conv.stacked_experts);
  EXPECT_EQ(conv.layout, Layout::same);
  EXPECT_EQ(tensor_of(model, key).shape, (Shape{32, 1, 4}));
  EXPECT_EQ(conv.shape, (Shape{32, 1, 4}));
}

TEST(MapTensors, Rule57_TheSourceDtypeIsRemembered) {
  auto const model = make_model(tiny_qwen35());
  auto const& bias = parameter_of(model, "model.language_model.layers.0.linear_attn.dt_bias");
  EXPECT_EQ(bias.hf_dtype, DType::BF16);
  EXPECT_EQ(bias.dtype, DType::F32);
  auto const& log = parameter_of(model, "model.language_model.layers.0.linear_attn.A_log");
  EXPECT_EQ(log.hf_dtype, DType::F32);
  EXPECT_EQ(log.dtype, DType::F32);
}

TEST(MapTensors, Rule32_ACheckpointWithoutPrefixStaysWithoutPrefix) {
  auto catalog = make_catalog(tiny_qwen35());
  for (auto& tensor : catalog.tensors) {
    if (tensor.name.starts_with("model.")) tensor.name.erase(0, 6);
  }
  auto const model = map_tensors(qwen3_5_moe(), catalog, make_config(tiny_qwen35()));
  EXPECT_EQ(parameter_of(model, kDown.substr(6)).fqn, "language_model.layers.2.mlp.experts.down_projs");
}

TEST(MapTensors, Rules39And43_TwoKeysOfOneParameterAreRefusedWithAllThreeNames) {
  struct Collision {
    std::string hf_key;
    std::string other;
    std::string fqn;
  };
  for (auto const& [key, other, fqn] : {
           Collision{"model.lm_head.weight", "lm_head.weight", "lm_head.weight"},
           Collision{"model.mtp.fc.weight", "mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
           Collision{"mtp.layers.0.enorm.weight", "mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
           Collision{"language_model.norm.weight", "model.language_model.norm.weight",
                     "model.language_model.norm.weight"},
           Collision{"model.language_model.layers.0.linear_attn._fp32_params.A_log",
                     "model.language_model.layers.0.linear_attn.A_log",
                     "model.language_model.layers.0.linear_attn._fp32_params.A_log"},
       }) {
    auto const refused = refusal([&](auto& catalog, auto&) { append_tensor(catalog, key, DType::BF16, {16}); });
    EXPECT_EQ(refused.message, other + " and " + key + " are two names of one parameter, " + fqn);
    EXPECT_EQ(refused.tensor, key);
  }
  auto const second_spelling = refusal([](auto& catalog, auto&) {
    append_tensor(catalog, "model.layers.2.mlp.experts.down_proj", DType::BF16, {4, 16, 8});
  });
  EXPECT_EQ(second_spelling.message, kDown +
                                         " and model.layers.2.mlp.experts.down_proj are two names of one parameter, "
                                         "model.language_model.layers.2.mlp.experts.down_projs");
}

TEST(MapTensors, Rule42_AWrongShapeOfExpertsNamesWhatWasExpectedAndWhy) {
  struct Wrong {
    std::string key;
    Shape shape;
    std::string expected;
  };
  for (auto const& [key, shape, expected] : {
           Wrong{kGateUp, {3, 16, 16}, "expected the shape [4, 16, 16] = [E, 2I, H], found [3, 16, 16]"},  // clipped
           Wrong{kGateUp, {5, 16, 16}, "expected the shape [4, 16, 16] = [E, 2I, H], found [5, 16, 16]"},
           Wrong{kGateUp, {4, 8, 16}, "expected the shape [4, 16, 16] = [E, 2I, H], found [4, 8, 16]"},
           Wrong{kGateUp, {4, 16, 17}, "expected the shape [4, 16, 16] = [E, 2I, H], found [4, 16, 17]"},
           Wrong{kDown, {4, 8, 16}, "expected the shape [4, 16, 8] = [E, H, I], found [4, 8, 16]"},  // swapped: rule 61
           Wrong{kMtpDown, {2, 16, 8}, "expected the shape [4, 16, 8] = [E, H, I], found [2, 16, 8]"},
       }) {
    auto const refused = refusal([&](auto& catalog, auto&) { tensor_named(catalog, key).shape = shape; });
    EXPECT_EQ(refused.message, "model.safetensors: " + key + ": " + expected +
                                   "; E is 4 by config.json's num_experts, H is 16 by config.json's hidden_size, "
                                   "I is 8 by config.json's moe_intermediate_size");
    EXPECT_EQ(refused.tensor, key);
    EXPECT_EQ(refused.file, "model.safetensors");
  }
}

TEST(MapTensors, WithoutSizesInConfigJsonTheFirstStackedTensorsSetThem) {
  auto const catalog = make_catalog(tiny_qwen35());
  EXPECT_EQ(map_tensors(qwen3_5_moe(), catalog, without_sizes()).tensors.size(), catalog.tensors.size());
  auto const refused = refusal([](auto& changed, auto& config) {
    config = without_sizes();
    tensor_named(changed, kDown).shape = {5, 16, 8};
  });
  std::string const first = "model.language_model.layers.0.mlp.experts.gate_up_proj";
  EXPECT_EQ(refused.message, "model.safetensors: " + kDown +
                                 ": expected the shape [4, 16, 8] = [E, H, I], found [5, 16, 8]; E is 4 by " + first +
                                 ", H is 16 by " + first + ", I is 8 by " + first);
}

TEST(MapTensors, WithoutSizesInConfigJsonExpertsNeedAnEvenWidthAndElements) {
  for (auto const& shape : {Shape{4, 15, 16}, Shape{0, 16, 16}, Shape{4, 0, 16}, Shape{4, 16, 0}}) {
    auto const refused = refusal([&](auto& catalog, auto& config) {
      config = without_sizes();
      tensor_named(catalog, "model.language_model.layers.0.mlp.experts.gate_up_proj").shape = shape;
    });
    EXPECT_THAT(refused.message, HasSubstr("found " + to_string(shape)));
  }
}

TEST(MapTensors, StackedExpertsNeedThreeAxes) {
  for (auto const& shape : {Shape{}, Shape{4}, Shape{4, 256}, Shape{4, 16, 16, 1}}) {
    auto const refused = refusal([&](auto& catalog, auto&) { tensor_named(catalog, kGateUp).shape = shape; });
    EXPECT_EQ(refused.message,
              "model.safetensors: " + kGateUp + ": stacked experts need 3 axes, found the shape " + to_string(shape));
  }
}

TEST(MapTensors, Rule42_AMissingHalfOfALayerIsNamed) {
  for (auto const& [missing, present] :
       {std::pair{kGateUp, kDown}, {kDown, kGateUp}, {kMtpGateUp, kMtpDown}, {kMtpDown, kMtpGateUp}}) {
    for (auto const& config : {make_config(tiny_qwen35()), without_sizes()}) {
      auto const refused = refusal([&](auto& catalog, auto& used) {
        used = config;
        remove_tensor(catalog, missing);
      });
      EXPECT_EQ(refused.message, missing + ": missing from the checkpoint: " + present + " is there");
      EXPECT_EQ(refused.tensor, missing);
    }
  }
}

TEST(MapTensors, Rule42_ALayerThatConfigJsonAnnouncesHasExperts) {
  auto const without_layer = [](auto& catalog, auto&) {
    remove_tensor(catalog, kGateUp);
    remove_tensor(catalog, kDown);
  };
  EXPECT_EQ(refusal(without_layer).message,
            kGateUp + ": missing from the checkpoint: config.json has num_hidden_layers = 4");
  auto const one_more = refusal([](auto&, auto& config) { config.layers = 5; });
  EXPECT_EQ(one_more.tensor, "model.language_model.layers.4.mlp.experts.gate_up_proj");
  auto const absurd = refusal([](auto&, auto& config) { config.layers = ~std::uint64_t{0}; });
  EXPECT_EQ(absurd.tensor, "model.language_model.layers.4.mlp.experts.gate_up_proj");
}

// Nothing is tried layer by layer up to such a number.
TEST(MapTensors, AbsurdNumbersOfLayersWithoutExpertsAreNoWork) {
  constexpr auto kSparse = std::uint64_t{1} << 62;
  auto const refused = refusal([](auto&, auto& config) {
    config.layers = 2 * kSparse;
    config.sparse_step = kSparse;
  });
  EXPECT_EQ(refused.tensor, fmt::format("model.language_model.layers.{}.mlp.experts.gate_up_proj", kSparse - 1));
  auto const none = refusal([](auto&, auto& config) {
    config.layers = kSparse - 1;
    config.sparse_step = kSparse;
  });
  EXPECT_EQ(none.message, "accepted");
}

// Twice as many matrices are 8 modulo 2^64, as many as there are.
TEST(MapTensors, Rule40_AnAbsurdNumberOfSplitExpertsIsNotTakenForAnother) {
  auto shape = tiny_qwen35();
  shape.mtp_form = ExpertForm::split;
  auto catalog = make_catalog(shape);
  std::erase_if(catalog.tensors, [](CatalogTensor const& tensor) {
    return !tensor.name.starts_with("mtp.") || tensor.name.find("down_proj") != std::string::npos;
  });
  auto config = make_config(shape);
  config.partial = true;
  EXPECT_NO_THROW((void)map_tensors(qwen3_5_moe(), catalog, config));
  config.experts = (std::uint64_t{1} << 63) + 4;
  EXPECT_THROW((void)map_tensors(qwen3_5_moe(), catalog, config), FormatError);
}

TEST(MapTensors, DenseLayersNeedNoExperts) {
  auto const refused = refusal([](auto& catalog, auto& config) {
    remove_tensor(catalog, kGateUp);
    remove_tensor(catalog, kDown);
    config.dense_layers = {2};
  });
  EXPECT_EQ(refused.message, "accepted");
}

TEST(MapTensors, MtpLayersAreDemandedOnlyWhereThereIsAnMtp) {
  auto const without_mtp = refusal([](auto& catalog, auto&) {
    std::erase_if(catalog.tensors, [](CatalogTensor const& tensor) { return tensor.name.starts_with("mtp."); });
  });
  EXPECT_EQ(without_mtp.message, "accepted");
  auto const without_experts = refusal([](auto& catalog, auto&) {
    remove_tensor(catalog, kMtpGateUp);
    remove_tensor(catalog, kMtpDown);
  });
  EXPECT_EQ(without_experts.message,
            kMtpGateUp + ": missing from the checkpoint: config.json has mtp_num_hidden_layers = 1");
  auto const one_more = refusal([](auto&, auto& config) { config.mtp_layers = 2; });
  EXPECT_EQ(one_more.tensor, "mtp.layers.1.mlp.experts.gate_up_proj");
}

TEST(MapTensors, ACheckpointWithoutExpertsIsToldHowTheyMayBeStored) {
  for (auto const& config : {make_config(tiny_qwen35()), without_sizes()}) {
    auto const refused = refusal([&](auto& catalog, auto& used) {
      used = config;
      std::erase_if(catalog.tensors,
                    [](CatalogTensor const& tensor) { return tensor.name.find(".experts.") != std::string::npos; });
    });
    EXPECT_EQ(refused.message,
              "no experts in the checkpoint: expected those of a layer together "
              "(model.language_model.layers.0.mlp.experts.gate_up_proj), or one by one "
              "(model.language_model.layers.0.mlp.experts.0.gate_proj.weight)");
  }
}

TEST(MapTensors, OtherQuantisedWeightsThanBlockFp8AreRefusedByName) {
  std::string const key = "model.language_model.layers.3.self_attn.q_proj.weight";
  for (auto const dtype : {DType::F8_E5M2, DType::F8_E8M0, DType::F8_E4M3FNUZ, DType::F4}) {
    auto const refused = refusal([&](auto& catalog, auto&) { tensor_named(catalog, key).dtype = dtype; });
    EXPECT_EQ(refused.message, fmt::format("model.safetensors: {}: has dtype {}: of quantised weights only F8_E4M3 "
                                           "with scales for blocks of 128 × 128 is supported",
                                           key, name(dtype)));
    EXPECT_EQ(refused.tensor, key);
  }
  for (auto const* ending : {".qweight", ".qzeros", ".weight_packed", ".weight_scale_2"}) {
    auto const refused = refusal([&](auto& catalog, auto&) {
      append_tensor(catalog, "model.language_model.layers.3.self_attn.q_proj" + std::string(ending), DType::I32, {4});
    });
    EXPECT_THAT(refused.message, HasSubstr("quantisation, which is not supported")) << ending;
  }
}

TEST(MapTensors, OtherQuantisationsInConfigJsonAreRefusedByName) {
  Quantisation const good{
      .field = "quantization_config", .method = "fp8", .format = "e4m3", .block = {128, 128}, .activations = {}};
  auto const refused_as = [&](auto const& change) {
    return refusal([&](auto&, auto& config) {
      config.quantisation = good;
      change(config.quantisation);
    });
  };
  auto const awq = refused_as([](Quantisation& said) { said.method = "awq"; });
  EXPECT_EQ(awq.message,
            "config.json: quantization_config: quant_method awq is not supported; there is only fp8 (e4m3) with scales "
            "for blocks of 128 × 128");
  EXPECT_EQ(awq.file, "config.json");
  EXPECT_THAT(refused_as([](Quantisation& said) { said.format = "e5m2"; }).message, HasSubstr("fmt e5m2"));
  EXPECT_THAT(refused_as([](Quantisation& said) {
                said.block = {1, 128};
              }).message,
              HasSubstr("weight_block_size [1, 128]"));
  EXPECT_THAT(refused_as([](Quantisation& said) { said.block.clear(); }).message,
              HasSubstr("fp8 without weight_block_size"));
}

TEST(MapTensors, Rules37And60_NoScaleIsEverDropped) {
  std::string const weight = "model.language_model.layers.3.self_attn.q_proj.weight";
  auto const unquantised = refusal([&](auto& catalog, auto&) {
    append_tensor(catalog, weight + "_scale_inv", DType::BF16, {1, 1});
  });
  EXPECT_EQ(unquantised.message, "model.safetensors: " + weight + "_scale_inv: are scales of " + weight +
                                     ", expected as F8_E4M3, found BF16");
  EXPECT_EQ(unquantised.file, "model.safetensors");
  std::string const nobodys = "model.language_model.layers.3.self_attn.nobody_scale_inv";
  auto const orphan = refusal([&](auto& catalog, auto&) { append_tensor(catalog, nobodys, DType::BF16, {1, 1}); });
  EXPECT_THAT(orphan.message, HasSubstr(nobodys + ": are scales of"));
}

}  // namespace
}  // namespace rankslice
