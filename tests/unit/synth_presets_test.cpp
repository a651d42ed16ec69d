#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "rankslice/error.hpp"

#include "synth/hub_files.hpp"
#include "synth/model_shapes.hpp"
#include "synth/presets.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::uint64_t bytes_of(std::string_view family, std::string_view preset) {
  return tensor_bytes(model_tensors(find_preset(family, preset).model));
}

TEST(Presets, AreOfTheirSize) {
  for (auto const* family : {"qwen3_5_moe", "qwen3_vl_moe"}) {
    EXPECT_LE(bytes_of(family, "tiny"), 64'000'000U) << family;
    EXPECT_GE(bytes_of(family, "small"), 2'000'000'000U) << family;
    EXPECT_LE(bytes_of(family, "small"), 2'200'000'000U) << family;
  }
}

// Where 2I == H or I == H, rule 61 finds no evidence of the axis order in the shapes.
TEST(Presets, TellATransposedExpertByItsShape) {
  for (auto const& preset : presets()) {
    EXPECT_NE(2 * preset.model.dims.intermediate, preset.model.dims.hidden) << preset.name;
    EXPECT_NE(preset.model.dims.intermediate, preset.model.dims.hidden) << preset.name;
  }
}

std::string usage_error(std::string_view family, std::string_view preset) {
  try {
    (void)find_preset(family, preset);
  } catch (UsageError const& error) {
    return error.what();
  }
  return "no error";
}

TEST(Presets, OfTheSameNameAreToldApartByTheFamily) {
  EXPECT_EQ(find_preset("qwen3_5_moe", "tiny").model.family, SynthFamily::qwen3_5_moe);
  EXPECT_EQ(find_preset("qwen3_vl_moe", "tiny").model.family, SynthFamily::qwen3_vl_moe);
  EXPECT_THAT(usage_error("auto", "tiny"),
              AllOf(HasSubstr("tiny"), HasSubstr("qwen3_5_moe and qwen3_vl_moe"), HasSubstr("--family")));
}

TEST(Presets, ThatThereAreNotAreRefusedWithAListOfThoseThereAre) {
  EXPECT_THAT(usage_error("qwen3_5_moe", "huge"), AllOf(HasSubstr("'huge'"), HasSubstr("tiny, small")));
  EXPECT_THAT(usage_error("auto", "huge"), AllOf(HasSubstr("'huge'"), HasSubstr("tiny, small")));
  EXPECT_THAT(usage_error("gpt2", "tiny"), AllOf(HasSubstr("'gpt2'"), HasSubstr("qwen3_5_moe, qwen3_vl_moe")));
  for (std::string const family : {"qwen3_moe", "qwen3_next"}) {
    EXPECT_THAT(usage_error(family, "tiny"), AllOf(HasSubstr(family), HasSubstr("not in this version")));
  }
}

}  // namespace
}  // namespace rankslice
