#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
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
using test::make_catalog;
using test::make_config;
using test::map_tensors;
using test::parameter_of;
using test::remove_tensor;
using test::tensor_named;
using test::tensor_of;
using testing::AllOf;
using testing::HasSubstr;
using testing::UnorderedElementsAreArray;

std::string const kDecoder = "model.language_model.layers.2.mlp.experts.";
std::string const kMtp = "mtp.layers.0.mlp.experts.";

// E = 4, H = 12, I = 8.
test::Qwen35Shape tiny(ExpertForm decoder, ExpertForm mtp) {
  auto shape = test::tiny_qwen35();
  shape.hidden = 12;
  shape.experts_form = decoder;
  shape.mtp_form = mtp;
  return shape;
}

test::Qwen35Shape all_split() { return tiny(ExpertForm::split, ExpertForm::split); }

ModelConfig without_sizes() {
  ModelConfig config;
  config.model_type = "qwen3_5_moe";
  return config;
}

using Spoil = std::function<void(TensorCatalog&, ModelConfig&)>;

test::Refusal refusal(Spoil const& spoil, test::Qwen35Shape const& shape = all_split()) {
  auto catalog = make_catalog(shape);
  auto config = make_config(shape);
  spoil(catalog, config);
  return test::refusal_of([&] { (void)map_tensors(qwen3_5_moe(), catalog, config); });
}

std::vector<std::string> keys_of(Model const& model, Parameter const& parameter) {
  std::vector<std::string> keys;
  for (auto const tensor : parameter.tensors) keys.push_back(model.tensors[tensor].key);
  return keys;
}

TEST(MapSplitExperts, Rules5And36_MtpExpertsBecomeTheTwoStackedParameters) {
  auto const model = make_model(tiny(ExpertForm::grouped, ExpertForm::split));
  auto const& gate_up = parameter_of(model, kMtp + "2.up_proj.weight");
  EXPECT_EQ(gate_up.fqn, "mtp.layers.0.mlp.experts.gate_and_up_projs");
  EXPECT_EQ(gate_up.shape, (Shape{4, 12, 16}));  // [E, H, 2I]
  EXPECT_EQ(gate_up.layout, Layout::swapped);
  EXPECT_EQ(gate_up.dtype, DType::BF16);
  EXPECT_EQ(gate_up.hf_dtype, DType::BF16);
  EXPECT_TRUE(gate_up.stacked_experts);
  auto const& down = parameter_of(model, kMtp + "2.down_proj.weight");
  EXPECT_EQ(down.fqn, "mtp.layers.0.mlp.experts.down_projs");
  EXPECT_EQ(down.shape, (Shape{4, 8, 12}));  // [E, I, H]
  EXPECT_EQ(parameter_of(model, kDecoder + "down_proj").tensors.size(), 1U);
}

TEST(MapSplitExperts, Rules5aAnd33_UnquantisedDecoderExpertsBecomeTheTwoStackedParameters) {
  auto const model = make_model(all_split());
  auto const& gate_up = parameter_of(model, kDecoder + "0.gate_proj.weight");
  EXPECT_EQ(gate_up.fqn, "model.language_model.layers.2.mlp.experts.gate_and_up_projs");
  EXPECT_EQ(gate_up.shape, (Shape{4, 12, 16}));
  EXPECT_EQ(parameter_of(model, kDecoder + "3.down_proj.weight").shape, (Shape{4, 8, 12}));
}

TEST(MapSplitExperts, Rules40And41_GateIsTheFirstHalfOfTheColumnsAndUpTheSecond) {
  auto const model = make_model(all_split());
  for (auto const& at : {kDecoder, kMtp}) {
    for (std::uint64_t expert = 0; expert < 4; ++expert) {
      auto const of_expert = fmt::format("{}{}.", at, expert);
      auto const& gate = tensor_of(model, of_expert + "gate_proj.weight");
      EXPECT_EQ(gate.experts, (Range{expert, expert + 1}));
      EXPECT_EQ(gate.columns, (Range{0, 8}));  // [0, I)
      EXPECT_EQ(gate.shape, (Shape{8, 12}));
      auto const& up = tensor_of(model, of_expert + "up_proj.weight");
      EXPECT_EQ(up.experts, (Range{expert, expert + 1}));
      EXPECT_EQ(up.columns, (Range{8, 16}));  // [I, 2I)
      auto const& down = tensor_of(model, of_expert + "down_proj.weight");
      EXPECT_EQ(down.experts, (Range{expert, expert + 1}));
      EXPECT_EQ(down.columns, (Range{0, 12}));
      EXPECT_EQ(down.shape, (Shape{12, 8}));
    }
  }
}

TEST(MapSplitExperts, Rule40_ExpertsAreInOrderWhateverTheFilesOrderIs) {
  auto catalog = make_catalog(all_split());
  auto const config = make_config(all_split());
  std::vector<std::string> expected;
  for (int expert = 0; expert < 4; ++expert) {
    expected.push_back(fmt::format("{}{}.gate_proj.weight", kMtp, expert));
    expected.push_back(fmt::format("{}{}.up_proj.weight", kMtp, expert));
  }
  std::mt19937 random(7);
  for (int i = 0; i < 20; ++i) {
    std::ranges::shuffle(catalog.tensors, random);
    auto const model = map_tensors(qwen3_5_moe(), catalog, config);
    EXPECT_EQ(keys_of(model, parameter_of(model, expected[0])), expected);
    std::vector<std::uint32_t> first;  // in the catalog, of each parameter
    for (auto const& parameter : model.parameters) first.push_back(std::ranges::min(parameter.tensors));
    EXPECT_TRUE(std::ranges::is_sorted(first));
    for (std::uint32_t t = 0; t < model.tensors.size(); ++t) {
      EXPECT_EQ(model.tensors[t].key, catalog.tensors[t].name);
      EXPECT_EQ(std::ranges::count(model.parameters[model.tensors[t].parameter].tensors, t), 1);
    }
  }
}

TEST(MapSplitExperts, Rule40_TenExpertsAreOrderedByNumberNotByText) {
  auto shape = all_split();
  shape.experts = 12;
  auto const model = make_model(shape);
  auto const& down = parameter_of(model, kDecoder + "0.down_proj.weight");
  ASSERT_EQ(down.tensors.size(), 12U);
  EXPECT_EQ(model.tensors[down.tensors[2]].key, kDecoder + "2.down_proj.weight");
  EXPECT_EQ(model.tensors[down.tensors[10]].key, kDecoder + "10.down_proj.weight");
}

std::string line_of(std::string const& key, Range const& experts, Range const& columns) {
  return fmt::format("  {}: experts {} to {}, columns {} to {}\n", key, experts.begin, experts.end, columns.begin,
                     columns.end);
}

/// The stacked parameters and what fills them, each in some lines.
std::vector<std::string> stacked_in(Model const& model) {
  std::vector<std::string> found;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts) continue;
    auto const* const layout = parameter.layout == Layout::swapped ? "swapped" : "same";
    auto& lines = found.emplace_back(fmt::format("{} {} {}\n", parameter.fqn, to_string(parameter.shape), layout));
    for (auto const index : parameter.tensors) {
      auto const& tensor = model.tensors[index];
      lines += line_of(tensor.key, tensor.experts, tensor.columns);
    }
  }
  return found;
}

/// Those of one layer: E = 4, H = 12, I = 8.
void append_layer(std::vector<std::string>& expected, std::string const& at, ExpertForm form) {
  auto gate_up = at + "gate_and_up_projs [4, 12, 16] swapped\n", down = at + "down_projs [4, 8, 12] swapped\n";
  if (form == ExpertForm::grouped) {
    gate_up += line_of(at + "gate_up_proj", {0, 4}, {0, 16});
    down += line_of(at + "down_proj", {0, 4}, {0, 12});
  } else {
    for (std::uint64_t expert = 0; expert < 4; ++expert) {
      auto const of_expert = fmt::format("{}{}.", at, expert);
      gate_up += line_of(of_expert + "gate_proj.weight", {expert, expert + 1}, {0, 8});
      gate_up += line_of(of_expert + "up_proj.weight", {expert, expert + 1}, {8, 16});
      down += line_of(of_expert + "down_proj.weight", {expert, expert + 1}, {0, 12});
    }
  }
  expected.insert(expected.end(), {gate_up, down});
}

TEST(MapSplitExperts, Rule31_TheLayoutOfTheDecoderSaysNothingOfTheMtps) {
  for (auto const decoder : {ExpertForm::grouped, ExpertForm::split}) {
    for (auto const mtp : {ExpertForm::grouped, ExpertForm::split}) {
      std::vector<std::string> expected;
      for (auto const* layer : {"0", "1", "2", "3"}) {
        append_layer(expected, fmt::format("model.language_model.layers.{}.mlp.experts.", layer), decoder);
      }
      append_layer(expected, kMtp, mtp);
      EXPECT_THAT(stacked_in(make_model(tiny(decoder, mtp))), UnorderedElementsAreArray(expected));
    }
  }
}

TEST(MapSplitExperts, Rules28And30_NeitherNamesNorConfigJsonDecideWhatTheKeysAlreadySay) {
  for (auto const mtp : {ExpertForm::grouped, ExpertForm::split}) {
    for (std::string const said : {"grouped", "split", "nonsense"}) {
      auto config = make_config(tiny(ExpertForm::grouped, mtp));
      config.mtp_expert_layout = said;
      auto const model = map_tensors(qwen3_5_moe(), make_catalog(tiny(ExpertForm::grouped, mtp)), config);
      EXPECT_EQ(model.tensors.size() != model.parameters.size(), mtp == ExpertForm::split);
    }
  }
}

TEST(MapSplitExperts, Rule33_EverySpellingOfTheKeysLeadsToOneParameterAndIsKept) {
  auto catalog = make_catalog(all_split());
  std::string const spelt = "model.layers.2.mlp.experts.3.up_proj.weight";
  tensor_named(catalog, kDecoder + "3.up_proj.weight").name = spelt;
  tensor_named(catalog, kMtp + "1.down_proj.weight").name = "model." + kMtp + "01.down_proj.weight";
  auto const model = map_tensors(qwen3_5_moe(), catalog, make_config(all_split()));
  EXPECT_EQ(parameter_of(model, spelt).fqn, kDecoder + "gate_and_up_projs");
  EXPECT_EQ(tensor_of(model, spelt).columns, (Range{8, 16}));
  EXPECT_EQ(tensor_of(model, "model." + kMtp + "01.down_proj.weight").experts, (Range{1, 2}));
}

TEST(MapSplitExperts, LayersAreNamedAsInTheKey) {
  auto catalog = make_catalog(all_split());
  for (auto& tensor : catalog.tensors) {
    if (tensor.name.starts_with(kMtp)) tensor.name.replace(0, kMtp.size(), "mtp.layers.00.mlp.experts.");
  }
  auto config = make_config(all_split());
  config.mtp_layers = 0;
  auto const model = map_tensors(qwen3_5_moe(), catalog, config);
  EXPECT_EQ(parameter_of(model, "mtp.layers.00.mlp.experts.1.up_proj.weight").fqn,
            "mtp.layers.00.mlp.experts.gate_and_up_projs");
}

TEST(MapSplitExperts, Rule26_DecoderExpertsAreSplitOrGroupedNotBoth) {
  auto const mixed = refusal([](auto& catalog, auto&) {
    append_tensor(catalog, kDecoder + "gate_up_proj", DType::BF16, {4, 16, 16});
  });
  EXPECT_EQ(mixed.message, "model.safetensors: " + kDecoder +
                               "gate_up_proj: Checkpoint contains both split and grouped decoder expert keys; cannot "
                               "infer one layout (examples: "
                               "'model.language_model.layers.0.mlp.experts.0.gate_proj.weight', '" +
                               kDecoder + "gate_up_proj')");
  EXPECT_EQ(mixed.tensor, kDecoder + "gate_up_proj");
  EXPECT_EQ(mixed.file, "model.safetensors");
  EXPECT_EQ(mixed.code, ExitCode::bad_data);
}

TEST(MapSplitExperts, Rule27_MtpExpertsAreSplitOrGroupedNotBoth) {
  auto const mixed = refusal(
      [](auto& catalog, auto&) {
        append_tensor(catalog, kMtp + "3.down_proj.weight", DType::BF16, {12, 8});
      },
      test::tiny_qwen35());
  EXPECT_EQ(mixed.message,
            "model.safetensors: " + kMtp +
                "gate_up_proj: Checkpoint contains both split and grouped MTP expert keys; cannot infer one layout "
                "(examples: '" +
                kMtp + "3.down_proj.weight', '" + kMtp + "gate_up_proj')");
}

struct Missing {
  std::vector<std::string> keys;  // taken out
  std::string named;
  std::string text;
  std::string found;
};

TEST(MapSplitExperts, Rules40And41And42_AMissingMatrixIsNamed) {
  std::string const two = "expected 2 tensors for each of 4 experts (config.json's num_experts), found ";
  std::string const one = "expected a tensor for each of 4 experts (config.json's num_experts), found ";
  for (auto const& [keys, named, text, found] : {
           Missing{{"1.gate_proj.weight"}, "1.gate_proj.weight", "1", two + "7 in all; missing: gate_proj of expert 1"},
           Missing{{"3.up_proj.weight"}, "3.up_proj.weight", "3", two + "7 in all; missing: up_proj of expert 3"},
           Missing{{"0.gate_proj.weight", "0.up_proj.weight", "2.gate_proj.weight"},
                   "0.gate_proj.weight",
                   "0",
                   two + "5 in all; missing: gate_proj and up_proj of expert 0; gate_proj of expert 2"},
       }) {
    for (auto const& at : {kDecoder, kMtp}) {
      auto const refused = refusal([&](auto& catalog, auto&) {
        for (auto const& key : keys) remove_tensor(catalog, at + key);
      });
      auto const matrix = named.substr(2, named.find('.', 2) - 2);
      auto const words = at == kMtp ? "Missing gate/up MTP expert weights for layer 0, expert " + text
                                    : "Missing " + matrix + " weight for layer 2, expert " + text;
      EXPECT_EQ(refused.message, at + named + ": " + words + ": " + found);
      EXPECT_EQ(refused.tensor, at + named);
    }
  }
  auto const down = refusal([](auto& catalog, auto&) { remove_tensor(catalog, kMtp + "2.down_proj.weight"); });
  EXPECT_EQ(down.message, kMtp + "2.down_proj.weight: Missing down MTP expert weight for layer 0, expert 2: " + one +
                              "3 in all; missing: down_proj of expert 2");
}

TEST(MapSplitExperts, Rule42_ExpertsZeroAndThreeOfFourAreNotTwoExperts) {
  auto const without_1_and_2 = [](auto& catalog, auto&) {
    for (auto const* expert : {"1", "2"}) {
      for (auto const* matrix : {".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"}) {
        remove_tensor(catalog, kMtp + expert + matrix);
      }
    }
  };
  EXPECT_THAT(refusal(without_1_and_2).message,
              HasSubstr("found 4 in all; missing: gate_proj and up_proj of experts 1, 2"));
  // Without config.json the highest expert says how many there are.
  auto const unsaid = refusal([&](auto& catalog, auto& config) {
    without_1_and_2(catalog, config);
    config = without_sizes();
  });
  EXPECT_EQ(unsaid.tensor, kMtp + "1.gate_proj.weight");
  EXPECT_THAT(unsaid.message, HasSubstr("each of 4 experts (model.language_model.layers.0.mlp.experts.3.gate_proj"));
}

TEST(MapSplitExperts, Rule42_WholeExpertsOfAnotherNumberThanConfigJsonsAreACaseOfItsOwn) {
  for (auto const said : {std::uint64_t{3}, std::uint64_t{5}}) {
    for (std::string const field : {"num_experts", "num_local_experts"}) {
      auto const refused = refusal([&](auto&, auto& config) {
        config.experts = said;
        config.experts_field = field;
      });
      EXPECT_EQ(refused.message, fmt::format("config.json: {} = {}, but every layer of the files has whole experts for "
                                             "E = 4, up to {}3.down_proj.weight",
                                             field, said, kMtp));
      EXPECT_EQ(refused.file, "config.json");
      EXPECT_EQ(refused.code, ExitCode::bad_data);
    }
  }
  auto const one_layer_less = refusal([](auto& catalog, auto& config) {
    config.experts = 5;
    config.experts_field = "num_local_experts";
    remove_tensor(catalog, kMtp + "2.down_proj.weight");
  });
  EXPECT_THAT(one_layer_less.message, HasSubstr("each of 5 experts (config.json's num_local_experts), found"));
}

TEST(MapSplitExperts, Rule42_ManyMissingExpertsAreListedInPart) {
  auto shape = all_split();
  shape.experts = 40;
  auto const refused = refusal(
      [](auto& catalog, auto&) {
        std::erase_if(catalog.tensors, [](CatalogTensor const& tensor) {
          return tensor.name.starts_with(kMtp) && !tensor.name.starts_with(kMtp + "39.");
        });
      },
      shape);
  EXPECT_THAT(refused.message,
              HasSubstr("found 2 in all; missing: gate_proj and up_proj of experts 0, 1, 2, 3, 4, 5, 6, 7, …"));
}

TEST(MapSplitExperts, Rule42_AnAbsurdExpertIsRefusedInNoTime) {
  for (auto const& config : {make_config(all_split()), without_sizes()}) {
    auto const refused = refusal([&](auto& catalog, auto& used) {
      used = config;
      append_tensor(catalog, kMtp + "4294967295.up_proj.weight", DType::BF16, {8, 12});
    });
    EXPECT_THAT(refused.message, HasSubstr(config.experts == 4 ? "expected experts below E = 4" : "Missing gate_proj"));
  }
}

TEST(MapSplitExperts, Rule41_HalfOfALayersExpertsIsNamedByWhatIsMissing) {
  auto const without = [](std::string const& matrix) {
    return refusal([&](auto& catalog, auto&) {
      std::erase_if(catalog.tensors, [&](CatalogTensor const& tensor) {
        return tensor.name.starts_with(kMtp) && tensor.name.find(matrix) != std::string::npos;
      });
    });
  };
  EXPECT_EQ(without(".down_proj.").message,
            kMtp + "0.down_proj.weight: Missing down MTP expert weight for layer 0, expert 0: " + kMtp +
                "0.gate_proj.weight is there");
  EXPECT_THAT(without(".gate_proj.").message,
              HasSubstr(kMtp + "0.gate_proj.weight: Missing gate/up MTP expert weights for layer 0, expert 0: "));
  EXPECT_THAT(without(".up_proj.").message,
              HasSubstr(kMtp + "0.up_proj.weight: Missing gate/up MTP expert weights for layer 0, expert 0: "));
}

TEST(MapSplitExperts, Rule42_ALayerThatConfigJsonAnnouncesHasExperts) {
  auto const refused = refusal([](auto&, auto& config) { config.layers = 5; });
  EXPECT_EQ(
      refused.message,
      "model.language_model.layers.4.mlp.experts.0.gate_proj.weight: Missing gate_proj weight for layer 4, expert "
      "0: config.json has num_hidden_layers = 5");
}

TEST(MapSplitExperts, Rule42_ExpertsBeyondTheirNumberAreNamed) {
  auto const refused = refusal([](auto& catalog, auto&) {
    for (auto const* matrix : {"4.gate_proj.weight", "4.up_proj.weight"}) {
      append_tensor(catalog, kMtp + matrix, DType::BF16, {8, 12});
    }
    append_tensor(catalog, kMtp + "4.down_proj.weight", DType::BF16, {12, 8});
  });
  EXPECT_EQ(refused.message, "model.safetensors: " + kMtp +
                                 "4.up_proj.weight: expected experts below E = 4 (config.json's num_experts), found 4");
}

TEST(MapSplitExperts, Rule5_MtpExpertsAreAsManyAsTheDecoders) {
  auto shape = tiny(ExpertForm::grouped, ExpertForm::split);
  auto const refused = refusal(
      [](auto& catalog, auto& config) {
        config = without_sizes();
        for (auto const* matrix : {"3.gate_proj.weight", "3.up_proj.weight", "3.down_proj.weight"}) {
          remove_tensor(catalog, kMtp + matrix);
        }
      },
      shape);
  EXPECT_THAT(refused.message,
              AllOf(HasSubstr("Missing gate/up MTP expert weights for layer 0, expert 3"),
                    HasSubstr("each of 4 experts (model.language_model.layers.0.mlp.experts.gate_up")));
}

TEST(MapSplitExperts, TwoKeysOfOneMatrixAreRefused) {
  for (auto const& second : {std::string("model.layers.2.mlp.experts.3.up_proj.weight"), kDecoder + "03.up_proj.weight",
                             kDecoder + "003.up_proj.weight"}) {
    auto const refused = refusal([&](auto& catalog, auto&) { append_tensor(catalog, second, DType::BF16, {8, 12}); });
    EXPECT_EQ(refused.message, kDecoder + "3.up_proj.weight and " + second + " are two names of one parameter, " +
                                   kDecoder + "gate_and_up_projs, expert 3");
    EXPECT_EQ(refused.tensor, second);
    EXPECT_EQ(refused.file, "model.safetensors");
  }
}

TEST(MapSplitExperts, Rule42_AWrongShapeNamesWhatWasExpectedAndWhy) {
  struct Wrong {
    std::string key;
    Shape shape;
    std::string expected;
  };
  for (auto const& [key, shape, expected] : {
           Wrong{kMtp + "2.gate_proj.weight", {12, 8}, "[8, 12] = [I, H], found [12, 8]"},
           Wrong{kMtp + "2.up_proj.weight", {8, 13}, "[8, 12] = [I, H], found [8, 13]"},
           Wrong{kDecoder + "2.up_proj.weight", {16, 12}, "[8, 12] = [I, H], found [16, 12]"},
           Wrong{kDecoder + "2.down_proj.weight", {8, 12}, "[12, 8] = [H, I], found [8, 12]"},
           Wrong{kDecoder + "2.down_proj.weight", {0, 8}, "[12, 8] = [H, I], found [0, 8]"},
       }) {
    auto const refused = refusal([&](auto& catalog, auto&) { tensor_named(catalog, key).shape = shape; });
    EXPECT_EQ(refused.message, "model.safetensors: " + key + ": expected the shape " + expected +
                                   "; E is 4 by config.json's num_experts, H is 12 by config.json's hidden_size, "
                                   "I is 8 by config.json's moe_intermediate_size");
    EXPECT_EQ(refused.tensor, key);
  }
  for (auto const& shape : {Shape{}, Shape{8}, Shape{8, 12, 1}}) {
    auto const refused =
        refusal([&](auto& catalog, auto&) { tensor_named(catalog, kMtp + "2.up_proj.weight").shape = shape; });
    EXPECT_EQ(refused.message, "model.safetensors: " + kMtp +
                                   "2.up_proj.weight: an expert's matrix needs 2 axes, found the shape " +
                                   to_string(shape));
  }
}

TEST(MapSplitExperts, OneWrongDtypeAmongThemIsNamed) {
  auto const refused =
      refusal([](auto& catalog, auto&) { tensor_named(catalog, kMtp + "2.up_proj.weight").dtype = DType::F32; });
  EXPECT_EQ(refused.message, "model.safetensors: " + kMtp + "2.up_proj.weight: expected BF16 as in " + kMtp +
                                 "0.gate_proj.weight, found F32");
  EXPECT_EQ(refused.tensor, kMtp + "2.up_proj.weight");
  // G and D are two parameters.
  auto const all_down = refusal([](auto& catalog, auto&) {
    for (auto& tensor : catalog.tensors) {
      if (tensor.name.starts_with(kMtp) && tensor.name.ends_with(".down_proj.weight")) tensor.dtype = DType::F32;
    }
  });
  EXPECT_EQ(all_down.message, "accepted");
}

TEST(MapSplitExperts, Rule40_QuantisedExpertsNeedTheirScalesAndScalesTheirWeights) {
  auto const key = kDecoder + "1.up_proj.weight";
  auto const codes = refusal([&](auto& catalog, auto&) { tensor_named(catalog, key).dtype = DType::F8_E4M3; });
  EXPECT_EQ(codes.message, "model.safetensors: " + key +
                               ": Missing FP8 up_proj weight/scale for layer 2, expert 1: expected " + key +
                               "_scale_inv beside it");
  auto const unquantised = refusal([&](auto& catalog, auto&) {
    append_tensor(catalog, key + "_scale_inv", DType::BF16, {1, 1});
  });
  EXPECT_EQ(unquantised.message,
            "model.safetensors: " + key + "_scale_inv: are scales of " + key + ", expected as F8_E4M3, found BF16");
  auto const orphan = refusal([&](auto& catalog, auto&) {
    append_tensor(catalog, kDecoder + "9.up_proj.weight_scale_inv", DType::BF16, {1, 1});
  });
  EXPECT_EQ(orphan.message,
            "model.safetensors: " + kDecoder +
                "9.up_proj.weight_scale_inv: Missing FP8 up_proj weight/scale for layer 2, expert 9: are "
                "scales of " +
                kDecoder + "9.up_proj.weight, which is missing");
}

TEST(MapSplitExperts, WithoutConfigJsonTheTensorsSayHowLongTheAxesAre) {
  std::vector<std::string> warnings;
  auto const catalog = make_catalog(all_split());
  auto const model = rankslice::map_tensors(qwen3_5_moe(), catalog, without_sizes(), {}, warnings);
  EXPECT_EQ(parameter_of(model, kMtp + "0.up_proj.weight").shape, (Shape{4, 12, 16}));
  std::string const first = "model.language_model.layers.0.mlp.experts.0.gate_proj.weight";
  EXPECT_THAT(warnings, testing::ElementsAre(
                            "E is 4 by model.language_model.layers.0.mlp.experts.3.gate_proj.weight, H is 12 by " +
                            first + ", I is 8 by " + first + ": config.json does not say so"));
}

TEST(MapSplitExperts, WhatConfigJsonSaysIsNotWarnedOf) {
  std::vector<std::string> warnings;
  (void)rankslice::map_tensors(qwen3_5_moe(), make_catalog(all_split()), make_config(all_split()), {}, warnings);
  EXPECT_THAT(warnings, testing::IsEmpty());
}

}  // namespace
}  // namespace rankslice
