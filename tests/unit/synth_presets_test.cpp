#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "rankslice/error.hpp"

#include "format/hub_files.hpp"
#include "synth/model_shapes.hpp"
#include "synth/presets.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string usage_error(std::string_view family, std::string_view preset) {
  try {
    (void)find_preset(family, preset);
  } catch (UsageError const& error) {
    return error.what();
  }
  return "no error";
}

/// What adapters.md D says of a release. Routed experts: thousandths of all bytes.
struct Release {
  char const* preset;
  std::string_view family;
  std::size_t tensors;
  std::uint64_t bytes;
  std::size_t f32;  // A_log and linear_attn.norm.weight of each layer with linear attention (rule 57)
  std::uint64_t routed;
  std::size_t files;
  char const* first_file;
};

constexpr std::array kReleases{
    // Not of D: of these two, others report 30,532,122,624 parameters in 61,064,245,248 bytes and 16 files, and
    // 81,324,862,720 parameters in 41 files; 75,944 tensors are half of those of its FP8 release that are no scales.
    Release{"qwen3-30b-a3b", "qwen3_moe", 18'867, 61'064'245'248, 0, 950, 16, "model-00001-of-00016.safetensors"},
    Release{"qwen3-next-80b-a3b", "qwen3_next", 75'944, 162'649'725'440, 0, 970, 41,
            "model-00001-of-00041.safetensors"},
    Release{"qwen3-vl-30b-a3b", "qwen3_vl_moe", 882, 62'141'508'064, 0, 933, 13, "model-00001-of-00013.safetensors"},
    // D does not know the number of files; 96 is what the limit of 5 GB that makes 13 of the 30B makes of it.
    Release{"qwen3-vl-235b-a22b", "qwen3_vl_moe", 1388, 471'340'045'792, 0, 964, 96,
            "model-00001-of-00096.safetensors"},
    Release{"qwen3.5-35b-a3b", "qwen3_5_moe", 1811, 71'903'655'008, 60, 918, 14,
            "model.safetensors-00001-of-00014.safetensors"},
    Release{"qwen3.6-35b-a3b", "qwen3_5_moe", 1045, 71'903'655'008, 60, 918, 26, "model-00001-of-00026.safetensors"},
    Release{"qwen3.5-122b-a10b", "qwen3_5_moe", 1949, 250'173'007'840, 72, 946, 39,
            "model.safetensors-00001-of-00039.safetensors"},
    Release{"qwen3.5-397b-a17b", "qwen3_5_moe", 2924, 806'795'875'168, 90, 974, 94,
            "model.safetensors-00001-of-00094.safetensors"},
};

TEST(Presets, OfRealModelsHaveTheTensorsAndBytesOfTheReleases) {
  for (auto const& release : kReleases) {
    auto const tensors = model_tensors(find_preset("auto", release.preset).model);
    EXPECT_EQ(tensors.size(), release.tensors) << release.preset;
    EXPECT_EQ(tensor_bytes(tensors), release.bytes) << release.preset;
    auto const of_dtype = [&](DType dtype) {
      return static_cast<std::size_t>(std::ranges::count(tensors, dtype, &SafetensorsHeader::Tensor::dtype));
    };
    EXPECT_EQ(of_dtype(DType::F32), release.f32) << release.preset;
    EXPECT_EQ(of_dtype(DType::BF16), release.tensors - release.f32) << release.preset;
  }
}

TEST(Presets, OfRealModelsHaveTheShareOfRoutedExpertsOfTheReleases) {
  for (auto const& release : kReleases) {
    std::uint64_t routed = 0;
    for (auto const& tensor : model_tensors(find_preset("auto", release.preset).model)) {
      if (tensor.name.find(".mlp.experts.") != std::string::npos) routed += byte_size(tensor.dtype, tensor.shape);
    }
    EXPECT_EQ((routed * 1000 + release.bytes / 2) / release.bytes, release.routed) << release.preset;
  }
}

TEST(Presets, OfRealModelsAreCutIntoFilesAsTheReleases) {
  for (auto const& release : kReleases) {
    auto const& preset = find_preset("auto", release.preset);
    auto const files = files_of(preset, preset.model);
    EXPECT_EQ(files.size(), release.files) << release.preset;
    EXPECT_EQ(files.front().name, release.first_file);
  }
}

TEST(Presets, OfRealModelsKnowTheirFamily) {
  for (auto const& release : kReleases) {
    EXPECT_EQ(name(find_preset("auto", release.preset).model.family), release.family) << release.preset;
    EXPECT_EQ(name(find_preset(release.family, release.preset).model.family), release.family) << release.preset;
    auto const other = release.family == "qwen3_5_moe" ? "qwen3_vl_moe" : "qwen3_5_moe";
    EXPECT_THAT(usage_error(other, release.preset),
                AllOf(HasSubstr(release.preset), HasSubstr(std::string("family ") + std::string(release.family)),
                      HasSubstr(std::string("not of ") + other)));
  }
}

TEST(Presets, OfRealModelsKeepTheirFileSizeWhenTheyAreCutDown) {
  auto const& preset = find_preset("auto", "qwen3.5-397b-a17b");
  auto model = preset.model;
  model.dims.layers = 6;
  auto const files = files_of(preset, model);
  EXPECT_GE(files.size(), 9U);  // a tenth of the layers, the MTP block and embeddings in full
  EXPECT_LE(files.size(), 13U);
}

std::uint64_t bytes_of(std::string_view family, std::string_view preset) {
  return tensor_bytes(model_tensors(find_preset(family, preset).model));
}

TEST(Presets, AreOfTheirSize) {
  for (auto const* family : {"qwen3_5_moe", "qwen3_vl_moe", "qwen3_moe", "qwen3_next"}) {
    EXPECT_LE(bytes_of(family, "tiny"), 64'000'000U) << family;
    EXPECT_GE(bytes_of(family, "small"), 2'000'000'000U) << family;
    EXPECT_LE(bytes_of(family, "small"), 2'200'000'000U) << family;
    EXPECT_GE(bytes_of(family, "medium"), 7'900'000'000U) << family;
    EXPECT_LE(bytes_of(family, "medium"), 8'400'000'000U) << family;
  }
}

// Where 2I == H or I == H, rule 61 finds no evidence of the axis order in the shapes.
TEST(Presets, TellATransposedExpertByItsShape) {
  for (auto const& preset : presets()) {
    EXPECT_NE(2 * preset.model.dims.intermediate, preset.model.dims.hidden) << preset.name;
    EXPECT_NE(preset.model.dims.intermediate, preset.model.dims.hidden) << preset.name;
  }
}

TEST(Presets, OfTheSameNameAreToldApartByTheFamily) {
  EXPECT_EQ(find_preset("qwen3_5_moe", "tiny").model.family, SynthFamily::qwen3_5_moe);
  EXPECT_EQ(find_preset("qwen3_vl_moe", "tiny").model.family, SynthFamily::qwen3_vl_moe);
  EXPECT_EQ(find_preset("qwen3_moe", "tiny").model.family, SynthFamily::qwen3_moe);
  EXPECT_EQ(find_preset("qwen3_next", "tiny").model.family, SynthFamily::qwen3_next);
  EXPECT_EQ(find_preset("auto", "tiny").model.family, SynthFamily::qwen3_5_moe);
}

TEST(Presets, ThatThereAreNotAreRefusedWithAListOfThoseThereAre) {
  EXPECT_THAT(usage_error("qwen3_5_moe", "huge"), AllOf(HasSubstr("'huge'"), HasSubstr("tiny, small")));
  EXPECT_THAT(usage_error("auto", "huge"), AllOf(HasSubstr("'huge'"), HasSubstr("tiny, small")));
  EXPECT_THAT(usage_error("gpt2", "tiny"),
              AllOf(HasSubstr("'gpt2'"), HasSubstr("qwen3_5_moe, qwen3_vl_moe, qwen3_moe, qwen3_next")));
}

}  // namespace
}  // namespace rankslice
