#include "fresh_source.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;

CheckpointParts parts_of(std::vector<CheckpointParts::Native> const& native) {
  CheckpointParts parts;
  parts.family = "qwen3_5_moe";
  parts.native = native;
  return parts;
}

CheckpointParts::Native dense(std::string const& fqn, DType dtype, std::uint64_t size) {
  return {.fqn = fqn, .dtype = dtype, .shape = {size}, .offsets = {0}, .local = {size}, .extent = {}};
}

// Shards list tensors in the order of their headers, by dtype; a state lists them by name; ranks list the same ones.
TEST(FreshSource, TheOrderInWhichTensorsAreListedDoesNotMatter) {
  std::vector<CheckpointParts::Native> listed{dense("a", DType::BF16, 2), dense("b", DType::F32, 1),
                                              dense("c", DType::BF16, 3), dense("d", DType::F32, 2)};
  auto by_name = parts_of(listed);
  add_fresh_files(by_name, {}, 8);
  std::vector<std::uint64_t> bytes;
  for (auto const& file : by_name.hf.files) bytes.push_back(file.size - file.header.size());
  EXPECT_THAT(bytes, ElementsAre(8, 6, 8)) << "a and b, c, d";
  do {
    auto parts = parts_of(listed);
    parts.native.push_back(listed.front());
    add_fresh_files(parts, {}, 8);
    ASSERT_EQ(parts.hf.files.size(), by_name.hf.files.size());
    for (std::size_t i = 0; i < parts.hf.files.size(); ++i) {
      EXPECT_EQ(parts.hf.files[i].header, by_name.hf.files[i].header);
    }
    EXPECT_EQ(parts.hf.index, by_name.hf.index);
  } while (std::ranges::next_permutation(listed, {}, &CheckpointParts::Native::fqn).found);
}

// Rules 26, 50: whichever layers are quantised, the decoder has one form, and MTP has its own.
TEST(FreshSource, Rule26_DecoderExpertsOfWhichAnyAreQuantisedAreExportedGrouped) {
  auto shape = test::tiny_qwen35();
  shape.experts_form = shape.mtp_form = ExpertForm::split;
  auto const forms_with = [&](std::string const& quantised) {
    Checkpoint checkpoint;
    checkpoint.family = "qwen3_5_moe";
    checkpoint.model = test::make_model(shape);
    for (auto& tensor : checkpoint.model.tensors) {
      if (tensor.key.starts_with(quantised)) tensor.dtype = DType::F8_E4M3;
    }
    auto const forms = expert_forms(checkpoint);
    return std::pair(forms.decoder_experts.value(), forms.mtp_experts.value());
  };
  for (auto const* layer : {"0", "1", "2", "3"}) {
    EXPECT_EQ(forms_with(fmt::format("model.language_model.layers.{}.mlp.experts.", layer)),
              std::pair(ExpertForm::grouped, ExpertForm::split))
        << layer;
  }
  EXPECT_EQ(forms_with("mtp.layers.0.mlp.experts."), std::pair(ExpertForm::split, ExpertForm::split));
  EXPECT_EQ(forms_with("none of them"), std::pair(ExpertForm::split, ExpertForm::split));
}

}  // namespace
}  // namespace rankslice
