#include <gtest/gtest.h>

#include <string>

#include "support/model_catalog.hpp"

namespace rankslice {
namespace {

// The published and computed numbers of adapters.md D: they check the generator and the tables at once.
struct Totals {
  std::uint64_t tensors = 0;
  std::uint64_t f32 = 0;
  std::uint64_t bytes = 0;
  std::uint64_t expert_bytes = 0;
  std::uint64_t vision = 0;
};

Totals totals_of(Model const& model) {
  Totals totals;
  for (auto const& tensor : model.tensors) {
    auto const bytes = byte_size(tensor.dtype, tensor.shape);
    ++totals.tensors;
    totals.bytes += bytes;
    if (tensor.dtype == DType::F32) ++totals.f32;
    if (model.parameters[tensor.parameter].stacked_experts) totals.expert_bytes += bytes;
    if (tensor.key.starts_with("model.visual.")) ++totals.vision;
  }
  return totals;
}

std::uint64_t permille(Totals const& totals) { return (1000 * totals.expert_bytes + totals.bytes / 2) / totals.bytes; }

test::Qwen35Shape qwen35_35b(ExpertForm mtp) {
  test::Qwen35Shape shape;
  shape.mtp_form = mtp;
  return shape;
}

TEST(RealModels, Qwen36_35B) {
  auto const totals = totals_of(make_model(qwen35_35b(ExpertForm::grouped)));
  EXPECT_EQ(totals.tensors, 1045U);
  EXPECT_EQ(totals.bytes, 71'903'655'008U);
  EXPECT_EQ(totals.expert_bytes,
            41U * (std::uint64_t{1536} << 20));  // 1 GiB + 0.5 GiB per layer, 40 layers and the MTP's
  EXPECT_EQ(totals.vision, 333U);
}

TEST(RealModels, Rule5_Qwen35_35BHasSplitMtpExpertsOfTheSameBytes) {
  auto const model = make_model(qwen35_35b(ExpertForm::split));
  auto const totals = totals_of(model);
  EXPECT_EQ(totals.tensors, 1811U);
  EXPECT_EQ(totals.bytes, 71'903'655'008U);
  EXPECT_EQ(permille(totals), 918U);
  EXPECT_EQ(model.parameters.size(), 1045U);
}

TEST(RealModels, Qwen35_122B) {
  auto const totals = totals_of(make_model(test::qwen35_122b()));
  EXPECT_EQ(totals.tensors, 1949U);
  EXPECT_EQ(totals.bytes, 250'173'007'840U);
  EXPECT_EQ(permille(totals), 946U);
}

TEST(RealModels, Rule30_The397BHasAsManyTensorsAsItsIndexOnlyWithSplitMtpExperts) {
  auto const totals = totals_of(make_model(test::qwen35_397b()));
  EXPECT_EQ(totals.tensors, 2924U);
  EXPECT_EQ(totals.f32, 90U);
  EXPECT_EQ(totals.bytes, 806'795'875'168U);
  EXPECT_EQ(permille(totals), 974U);
}

TEST(RealModels, Rule2_QwenVl30B) {
  auto const totals = totals_of(test::make_vl_model({}));
  EXPECT_EQ(totals.tensors, 882U);
  EXPECT_EQ(totals.bytes, 62'141'508'064U);
  EXPECT_EQ(totals.bytes / 2, 31'070'754'032U);  // parameters
  EXPECT_EQ(totals.vision, 351U);
  EXPECT_EQ(permille(totals), 933U);
}

TEST(RealModels, Rule2_QwenVl235B) {
  auto const totals = totals_of(test::make_vl_model(test::qwen_vl_235b()));
  EXPECT_EQ(totals.tensors, 1388U);
  EXPECT_EQ(totals.bytes, 471'340'045'792U);
  EXPECT_EQ(permille(totals), 964U);
}

TEST(RealModels, Rule5a_TransformersLayoutHasTheSameNamesAndBytesAsTheHubs) {
  test::QwenVlShape transformers;
  transformers.layout = ExpertLayout::transformers;
  auto const hub = test::make_vl_model({});
  auto const other = test::make_vl_model(transformers);
  ASSERT_EQ(hub.parameters.size(), other.parameters.size());
  for (std::size_t i = 0; i < hub.parameters.size(); ++i) {
    auto const& parameter = other.parameters[i];
    EXPECT_EQ(parameter.fqn, hub.parameters[i].fqn);
    EXPECT_EQ(parameter.shape, hub.parameters[i].shape) << parameter.fqn;
    EXPECT_EQ(hub.parameters[i].layout, Layout::same) << parameter.fqn;
    EXPECT_EQ(parameter.layout, parameter.stacked_experts ? Layout::swapped : Layout::same) << parameter.fqn;
  }
}

TEST(RealModels, Rule57_UpstreamsF32BiasesWouldMakeThe35B1920BytesLarger) {
  std::uint64_t growth = 0;
  for (auto const& parameter : test::make_model(test::Qwen35Shape{}).parameters) {
    growth += byte_size(parameter.dtype, parameter.shape) - byte_size(parameter.hf_dtype, parameter.shape);
  }
  EXPECT_EQ(growth, 1'920U);
}

}  // namespace
}  // namespace rankslice
