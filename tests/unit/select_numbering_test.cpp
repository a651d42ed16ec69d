// Selections renumber tensors and parameters: what belongs to them must follow, in either form of the bytes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/error.hpp"

#include "hf_target.hpp"
#include "plan/plan.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr std::uint64_t kExperts = 3;

/// A checkpoint with grouped and split experts whose recorded digests all differ.
std::shared_ptr<Checkpoint> whole_checkpoint() {
  auto checkpoint = std::make_shared<Checkpoint>();
  checkpoint->path = "/checkpoint";
  checkpoint->model = test::split_model(kExperts, 4, 2);
  checkpoint->catalog = test::catalog_of(checkpoint->model);
  checkpoint->storage = {.form = Form::hf,
                         .files = checkpoint->catalog.files,
                         .pieces = hf_pieces(checkpoint->catalog, checkpoint->model)};
  auto& digests = checkpoint->digests.emplace(checkpoint->model);
  std::uint64_t next = 1000;
  for (auto& value : digests.source.values()) value = next++;
  for (auto& value : digests.stored.values()) value = next++;
  return checkpoint;
}

/// The same as native tensors, in two pieces each.
std::shared_ptr<Checkpoint> whole_store() {
  auto store = whole_checkpoint();
  store->storage.form = Form::native;
  store->storage.pieces.clear();
  std::uint64_t begin = 0;
  for (std::uint32_t i = 0; i < store->model.parameters.size(); ++i) {
    auto const whole = store->model.parameters[i].whole();
    for (Range const part : {Range{0, 2}, Range{2, whole.part.end}}) {
      store->storage.pieces.push_back({.parameter = i,
                                       .slice = {.part = part, .rows = whole.rows},
                                       .extent = {.file = 0, .bytes = {begin, begin + 1}}});
      ++begin;
    }
  }
  return store;
}

std::uint32_t tensor_named(Checkpoint const& checkpoint, std::string const& key) {
  auto const& tensors = checkpoint.model.tensors;
  return static_cast<std::uint32_t>(std::ranges::find(tensors, key, &HfTensor::key) - tensors.begin());
}

std::vector<std::string> keys_of(Checkpoint const& checkpoint) {
  std::vector<std::string> keys;
  for (auto const& tensor : checkpoint.model.tensors) keys.push_back(tensor.key);
  return keys;
}

KeySelection containing(std::string const& text) {
  return [text](std::string_view key) { return key.find(text) != std::string_view::npos; };
}

/// The selections that leave no parameter in pieces.
std::vector<KeySelection> selections() {
  return {containing("mtp"),    containing("layers.0"),  containing("gate_up_proj"),
          containing("weight"), containing("down_proj"), containing("lm_head"),
          containing("")};
}

TEST(SelectTensors, TensorsAndParametersStillPointAtEachOther) {
  auto const whole = whole_checkpoint();
  for (auto const& keys : selections()) {
    auto const selected = select_tensors(whole, keys);
    auto const& model = selected->model;
    std::size_t tensors = 0;
    for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
      auto const& before = *std::ranges::find(whole->model.parameters, model.parameters[i].fqn, &Parameter::fqn);
      EXPECT_EQ(model.parameters[i].shape, before.shape);
      ASSERT_EQ(model.parameters[i].tensors.size(), before.tensors.size());
      for (std::size_t k = 0; k < before.tensors.size(); ++k) {
        auto const& tensor = model.tensors.at(model.parameters[i].tensors[k]);
        EXPECT_EQ(tensor.parameter, i);
        EXPECT_EQ(tensor.key, whole->model.tensors[before.tensors[k]].key);
        EXPECT_EQ(tensor.columns, whole->model.tensors[before.tensors[k]].columns);
        ++tensors;
      }
    }
    EXPECT_EQ(tensors, model.tensors.size());
  }
}

TEST(SelectTensors, PiecesLieWhereTheyLayAndEverySliceIsFound) {
  for (auto const& whole : {whole_checkpoint(), whole_store()}) {
    for (auto const& keys : selections()) {
      auto const selected = select_tensors(whole, keys);
      auto const& model = selected->model;
      for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
        auto const& parameter = model.parameters[i];
        auto const old =
            static_cast<std::uint32_t>(std::ranges::find(whole->model.parameters, parameter.fqn, &Parameter::fqn) -
                                       whole->model.parameters.begin());
        auto const now = locate(selected->storage, model, {.parameter = i, .slice = parameter.whole()});
        auto const before = locate(whole->storage, whole->model, {.parameter = old, .slice = parameter.whole()});
        ASSERT_EQ(now.size(), before.size());
        for (std::size_t k = 0; k < now.size(); ++k) {
          EXPECT_EQ(now[k].piece->extent, before[k].piece->extent);
          EXPECT_EQ(now[k].slice, before[k].slice);
          if (whole->storage.form == Form::native) continue;
          EXPECT_EQ(model.tensors[now[k].piece->tensor].key, whole->model.tensors[before[k].piece->tensor].key);
        }
      }
    }
  }
}

TEST(SelectTensors, NothingOfOtherTensorsIsLeft) {
  EXPECT_EQ(select_tensors(whole_checkpoint(), containing("mtp"))->storage.pieces.size(), 3 * kExperts + 1);
  EXPECT_EQ(select_tensors(whole_store(), containing("mtp"))->storage.pieces.size(), 2U * 3U);
}

TEST(SelectTensors, DigestsStayWithTheirTensors) {
  auto const whole = whole_checkpoint();
  auto const values = [](DigestTable const& table, std::size_t tensor) {
    auto const of = table.of(tensor);
    return std::vector<std::uint64_t>(of.begin(), of.end());
  };
  for (auto const& keys : selections()) {
    auto const selected = select_tensors(whole, keys);
    ASSERT_TRUE(selected->digests.has_value());
    ASSERT_EQ(selected->digests->source.tensors(), selected->model.tensors.size());
    for (std::size_t i = 0; i < selected->model.tensors.size(); ++i) {
      auto const before = tensor_named(*whole, selected->model.tensors[i].key);
      EXPECT_EQ(values(selected->digests->source, i), values(whole->digests->source, before));
      EXPECT_EQ(values(selected->digests->stored, i), values(whole->digests->stored, before));
    }
  }
  auto const without = whole_checkpoint();
  without->digests->without_values = without->digests->without_codes = true;
  EXPECT_TRUE(select_tensors(without, containing("mtp"))->digests->without_values);
  EXPECT_TRUE(select_tensors(without, containing("mtp"))->digests->without_codes);
  without->digests.reset();
  EXPECT_FALSE(select_tensors(without, containing("mtp"))->digests.has_value());
}

TEST(SelectTensors, LeavesTheWholeCheckpointAsItIs) {
  auto const whole = whole_checkpoint();
  auto const keys = keys_of(*whole);
  (void)select_tensors(whole, containing("mtp"));
  EXPECT_EQ(keys_of(*whole), keys);
  EXPECT_EQ(whole->storage.pieces.size(), keys.size());
}

TEST(SelectTensors, AsksForEveryKeyOnce) {
  auto const whole = whole_checkpoint();
  std::vector<std::string> asked;
  (void)select_tensors(whole, [&](std::string_view key) {
    asked.emplace_back(key);
    return true;
  });
  EXPECT_EQ(asked, keys_of(*whole));
}

// Whichever of them is left out, also the first or the last.
TEST(SelectTensors, SplitExpertsOfWhichSomeAreLeftOutAreRefusedNamingParameterAndTensor) {
  auto const whole = whole_checkpoint();
  auto const& model = whole->model;
  for (auto const& left_out : model.tensors) {
    auto const& parameter = model.parameters[left_out.parameter];
    KeySelection const all_but_one = [&](std::string_view key) { return key != left_out.key; };
    if (parameter.tensors.size() == 1) {
      EXPECT_EQ(select_tensors(whole, all_but_one)->model.tensors.size(), model.tensors.size() - 1);
      continue;
    }
    try {
      (void)select_tensors(whole, all_but_one);
      ADD_FAILURE() << left_out.key;
    } catch (PlanError const& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr(parameter.fqn), HasSubstr(left_out.key)));
      EXPECT_EQ(error.tensor, parameter.fqn);
    }
  }
}

}  // namespace
}  // namespace rankslice
