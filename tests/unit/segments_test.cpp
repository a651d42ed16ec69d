// How an output is divided into parts that are written and recorded one after the other: for 1 to 4096 ranks.

#include "plan/segments.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <string>

#include "plan/gather_plan.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t kHidden = 24;  // rows of G
constexpr std::uint64_t kIntermediate = 12;

std::vector<Mesh> meshes() {
  std::vector<Mesh> all;
  for (auto const shards : {1, 2, 12}) {
    for (auto const ep : {1, 2, 3, 7, 60, 341, 4096}) {
      for (auto const replicas : {1, 3}) {
        Mesh const mesh{.ep_replicate = replicas, .ep_shard = shards, .ep = ep};
        if (mesh.ranks() <= 4096) all.push_back(mesh);
      }
    }
  }
  return all;
}

/// The tensors of a model in files of at most so many bytes, in their order, as safetensors fills them.
Storage in_files(Model const& model, std::uint64_t most_bytes) {
  Storage storage;
  std::uint64_t end = most_bytes;
  std::vector<Extent> places;
  for (auto const& tensor : model.tensors) {
    auto const bytes = byte_size(tensor.dtype, tensor.shape);
    if (end + bytes > most_bytes) {
      auto const name = "file-" + std::to_string(storage.files.size());
      storage.files.push_back({.name = name, .path = name});
      end = 0;
    }
    places.push_back({static_cast<std::uint32_t>(storage.files.size() - 1), {end, end + bytes}});
    end += bytes;
    storage.files.back().size = end;
  }
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    for (auto const number : model.parameters[i].tensors) {
      auto slice = model.parameters[i].whole();
      if (model.parameters[i].stacked_experts) slice.part = model.tensors[number].experts;
      storage.pieces.push_back({.parameter = i, .tensor = number, .slice = slice, .extent = places[number]});
    }
  }
  return storage;
}

/// As a store has them: parameters one after the other, in the native form.
Storage in_store(Model const& model) {
  Storage storage{.form = Form::native, .files = {{.name = "store", .path = "store"}}, .pieces = {}};
  std::uint64_t end = 5;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const bytes = byte_size(model.parameters[i].dtype, model.parameters[i].shape);
    storage.pieces.push_back({.parameter = i, .slice = model.parameters[i].whole(), .extent = {0, {end, end + bytes}}});
    end += bytes;
  }
  return storage;
}

/// A model, and a target for it.
struct Example {
  Model model;
  Storage target;
};

std::vector<Example> examples() {
  std::vector<Example> all;
  for (auto const experts : {1U, 5U, 60U}) {
    auto const model = test::split_model(experts, kHidden, kIntermediate);
    // One file, several, and one for each tensor: then gate and up of an expert lie apart.
    for (auto const most : {1'000'000U, 3000U, 1U}) all.push_back({model, in_files(model, most)});
    all.push_back({model, in_store(model)});
  }
  return all;
}

std::vector<Segment> segments_of(Example const& example) {
  return divide_into_segments(example.model, example.target, 2000);
}

std::vector<std::size_t> all_of(std::vector<Segment> const& segments) {
  std::vector<std::size_t> numbers(segments.size());
  std::iota(numbers.begin(), numbers.end(), std::size_t{0});
  return numbers;
}

/// How often elements of a parameter, by expert and row or by element, are in slices.
using Counts = std::map<std::uint32_t, std::vector<int>>;

void count(Model const& model, std::vector<PlannedSlice> const& slices, Counts& counts) {
  for (auto const& [index, slice] : slices) {
    auto const& parameter = model.parameters[index];
    auto& of = counts[index];
    of.resize(parameter.whole().size());
    for (auto part = slice.part.begin; part < slice.part.end; ++part) {
      for (auto row = slice.rows.begin; row < slice.rows.end; ++row) ++of[part * parameter.row_count() + row];
    }
  }
}

void expect_each_once(Model const& model, Counts const& counts) {
  ASSERT_EQ(counts.size(), model.parameters.size());
  for (auto const& [index, of] : counts) {
    ASSERT_EQ(of.size(), model.parameters[index].whole().size());
    ASSERT_EQ(std::ranges::count(of, 1), std::ssize(of)) << model.parameters[index].fqn;
  }
}

TEST(Segments, OfFilesHaveEveryUnitThatBeginsInThem) {
  for (auto const& example : examples()) {
    if (example.target.form == Form::native) continue;
    auto const segments = segments_of(example);
    Counts counts;
    for (auto const& segment : segments) {
      count(example.model, segment.units, counts);
      for (auto const& [parameter, unit] : segment.units) {
        ASSERT_EQ(unit.rows, example.model.parameters[parameter].whole().rows);
        for (auto part = unit.part.begin; part < unit.part.end; ++part) {
          if (!example.model.parameters[parameter].stacked_experts && part > unit.part.begin) break;
          std::optional<Extent> first;
          for (auto const& piece : example.target.pieces) {
            if (piece.parameter != parameter || part < piece.slice.part.begin || part >= piece.slice.part.end) continue;
            auto at = piece.extent;
            at.bytes.begin += (part - piece.slice.part.begin) * (at.bytes.size() / piece.slice.part.size());
            first = std::min(first.value_or(at), at);
          }
          ASSERT_EQ(segment.name, "file-" + std::to_string(first.value().file));
        }
      }
    }
    expect_each_once(example.model, counts);
  }
}

TEST(Segments, OfAStoreAreWholeParametersInItsOrderUntilTheyAreLargeEnough) {
  Model model;
  for (auto const bytes : {30U, 80U, 100U, 10U, 20U}) {
    test::append_dense(model, std::to_string(model.parameters.size()), DType::U8, DType::U8, {bytes});
  }
  auto store = in_store(model);
  std::swap(store.pieces[0].extent.bytes, store.pieces[4].extent.bytes);  // 4 begins the file, which 0 ends
  store.pieces[4].extent.bytes.end = store.pieces[4].extent.bytes.begin + 20;
  auto const segments = divide_into_segments(model, store, 100);
  std::vector<std::vector<std::uint32_t>> parameters;
  for (auto const& segment : segments) {
    parameters.emplace_back();
    for (auto const& [parameter, unit] : segment.units) {
      ASSERT_EQ(unit, model.parameters[parameter].whole());
      parameters.back().push_back(parameter);
    }
  }
  EXPECT_THAT(parameters, ElementsAre(ElementsAre(1, 4), ElementsAre(2), ElementsAre(0, 3)));
  EXPECT_EQ(segments[0].bytes, 100U);
  EXPECT_THAT(segments[1].files, ElementsAre(0));
}

TEST(Segments, KnowAllFilesInWhichTheyHaveBytesAndHowMany) {
  Model model;
  test::append_split(model, "mlp.experts", 2, 4, 3);  // D and G; 24 bytes for each matrix
  auto const storage = in_files(model, 48);           // down 0 and gate 0, up 0 and down 1, gate 1 and up 1
  auto const segments = divide_into_segments(model, storage);
  ASSERT_EQ(segments.size(), 3U);
  EXPECT_EQ(segments[0].name, "file-0");
  EXPECT_THAT(segments[0].files, ElementsAre(0, 1)) << "gate_up of expert 0 begins in the first file";
  EXPECT_EQ(segments[0].bytes, 72U);
  EXPECT_THAT(segments[1].files, ElementsAre(1)) << "down of expert 1";
  EXPECT_EQ(segments[1].bytes, 24U);
  EXPECT_THAT(segments[2].files, ElementsAre(2));
  EXPECT_EQ(segments[2].bytes, 48U);
}

TEST(Segments, KnowTheFilesOfBlockScales) {
  Model model;
  test::append_dense(model, "weight", DType::F8_E4M3, DType::BF16, {128, 128});
  test::append_dense(model, "weight_scale_inv", DType::F32, DType::F32, {1, 1});
  model.parameters.pop_back();
  model.tensors[0].scales = 1;
  model.tensors[1].is_scales = true;
  Storage const storage{.files = {{.name = "scales", .path = {}}, {.name = "weights", .path = {}}},
                        .pieces = {{.parameter = 0,
                                    .tensor = 0,
                                    .slice = model.parameters[0].whole(),
                                    .extent = {1, {0, 128 * 128}},
                                    .scales = Extent{0, {0, 4}}}}};
  auto const segments = divide_into_segments(model, storage);
  ASSERT_EQ(segments.size(), 1U);
  EXPECT_EQ(segments[0].name, "weights");
  EXPECT_THAT(segments[0].files, ElementsAre(0, 1));
  EXPECT_EQ(segments[0].bytes, 128U * 128U + 4U);
}

TEST(Segments, HaveNothingOfWhatTheTargetLeavesOut) {
  auto const model = test::split_model(5, kHidden, kIntermediate);
  auto storage = in_files(model, 3000);
  storage.partial = true;
  std::erase_if(storage.pieces, [](StoredPiece const& piece) { return piece.parameter != 1; });
  Counts counts;
  for (auto const& segment : divide_into_segments(model, storage)) count(model, segment.units, counts);
  ASSERT_EQ(counts.size(), 1U);
  EXPECT_EQ(counts.begin()->first, 1U);
}

TEST(Stages, AllTogetherWriteEveryElementOnceForOneTo4096Ranks) {
  for (auto const& example : examples()) {
    auto const segments = segments_of(example);
    for (auto const& mesh : meshes()) {
      SCOPED_TRACE(testing::Message() << mesh.ep_replicate << " x " << mesh.ep_shard << " x " << mesh.ep);
      Counts counts;
      for (auto const& stage : divide_into_stages(segments, all_of(segments), 5000)) {
        auto const units = units_of(segments, stage);
        for (int rank = 0; rank < mesh.ranks(); ++rank) {
          auto const plan = make_save_plan(example.model, {.mesh = mesh}, rank, units);
          ASSERT_EQ(cut_by_units(plan, units).size(), plan.size());
          count(example.model, plan, counts);
        }
      }
      expect_each_once(example.model, counts);
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(Stages, AreOfAtMostSoManyBytesOrOneSegmentAndNoSmallerThanThatTakes) {
  for (auto const& example : examples()) {
    auto const segments = segments_of(example);
    for (auto const most : {0U, 1U, 1000U, 100'000U}) {
      std::vector<std::size_t> all;
      auto const stages = divide_into_stages(segments, all_of(segments), most);
      for (std::size_t i = 0; i < stages.size(); ++i) {
        std::uint64_t bytes = 0;
        for (auto const number : stages[i]) bytes += segments[number].bytes;
        ASSERT_TRUE(bytes <= most || stages[i].size() == 1);
        ASSERT_TRUE(i + 1 == stages.size() || bytes + segments[stages[i + 1].front()].bytes > most);
        all.insert(all.end(), stages[i].begin(), stages[i].end());
      }
      ASSERT_EQ(all, all_of(segments));
    }
  }
  EXPECT_THAT(divide_into_stages({}, {}, 1), IsEmpty());
}

TEST(Stages, OfAStoreAreAboutTheSameWorkForAllRanks) {
  Model model;
  test::append_dense(model, "embed_tokens", DType::BF16, DType::BF16, {150'000, 2048});
  for (auto const* const layer : {"0", "1", "2", "3", "4"}) {
    test::append_dense(model, std::string(layer) + ".norm", DType::BF16, DType::BF16, {2048});
    test::append_dense(model, std::string(layer) + ".q_proj", DType::BF16, DType::BF16, {4096, 2048});
    test::append_grouped(model, std::string(layer) + ".gate_up_proj", {128, 2048, 1536});
    test::append_grouped(model, std::string(layer) + ".down_proj", {128, 768, 2048});
  }
  auto const store = in_store(model);
  auto const segments = divide_into_segments(model, store);
  for (auto const ranks : {8, 16, 64}) {
    auto const stages = divide_into_stages(segments, all_of(segments), 64_MiB);
    ASSERT_GT(stages.size(), 5U);
    for (auto const& stage : stages) {
      auto const units = units_of(segments, stage);
      std::uint64_t busiest = 0;
      std::uint64_t all = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        auto const plan = make_save_plan(model, {.mesh = make_mesh(ranks)}, rank, units);
        auto const bytes = plan_bytes(model, plan, Form::native);
        busiest = std::max(busiest, bytes);
        all += bytes;
      }
      EXPECT_LT(static_cast<double>(busiest) * ranks / static_cast<double>(all), 1.5)
          << ranks << " ranks, " << segments[stage.front()].name;
    }
  }
}

TEST(Stages, OfAFewDenseTensorsAreWorkForAll) {
  Model model;
  for (auto const* const name : {"a", "b", "c", "d"}) {
    test::append_dense(model, name, DType::BF16, DType::BF16, {8});
  }
  std::vector<PlannedSlice> const units{{1, {.part = {0, 8}}}};
  for (int rank = 0; rank < 4; ++rank) {
    auto const plan = make_save_plan(model, {.mesh = make_mesh(4)}, rank, units);
    ASSERT_EQ(plan.size(), 1U) << rank;
    EXPECT_EQ(plan[0].parameter, 1U);
    EXPECT_EQ(plan[0].slice.part,
              (Range{static_cast<std::uint64_t>(rank) * 2, static_cast<std::uint64_t>(rank) * 2 + 2}));
  }
}

TEST(Stages, OfAGatherHaveItsBlocksEachOnceAndFromTheSameOwners) {
  for (auto const& example : examples()) {
    auto const segments = segments_of(example);
    for (auto const ranks : {1, 3, 64}) {
      std::vector<PlannedSlice> whole;
      for (std::uint32_t i = 0; i < example.model.parameters.size(); ++i) {
        whole.push_back({i, example.model.parameters[i].whole()});
      }
      GatherOwners const owners{.holdings = {.mesh = make_mesh(ranks)}, .dense_everywhere = false, .receiver = 0};
      auto const plan = plan_gather(example.model, whole, owners);
      std::map<int, std::uint64_t> sent;
      Counts counts;
      for (auto const& stage : divide_into_stages(segments, all_of(segments), 3000)) {
        auto const part = cut_by_units(example.model, plan, units_of(segments, stage), 1000);
        for (auto const& batch : part.batches) count(example.model, slices_of(part, batch), counts);
        for (int rank = 0; rank < ranks; ++rank) {
          sent[rank] += plan_bytes(example.model, slices_sent_by(part, rank), Form::native);
        }
      }
      expect_each_once(example.model, counts);
      for (int rank = 0; rank < ranks; ++rank) {
        ASSERT_EQ(sent[rank], plan_bytes(example.model, slices_sent_by(plan, rank), Form::native)) << rank;
      }
    }
  }
}

}  // namespace
}  // namespace rankslice
