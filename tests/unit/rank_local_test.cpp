// Loading and proving one rank's slice with rankslice::core alone: no communicator, no MPI.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stop_token>

#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "core/literals.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "synth/synth.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kExperts = 7;

/// Rules 9 and 13, from their text: the experts of a rank, `ep` fastest.
Range experts_of(std::uint64_t experts, Mesh const& mesh, int rank) {
  auto const width = static_cast<std::uint64_t>(mesh.ep);
  auto const r = static_cast<std::uint64_t>(rank % mesh.ep);
  auto const b = experts / width;
  auto const m = experts % width;
  if (r < m) return {r * (b + 1), (r + 1) * (b + 1)};
  return {r * b + m, r * b + m + b};
}

/// The native form of the experts [begin, end) of a stacked tensor: axes 1 and 2 swapped (rule 35).
Bytes native_experts(test::RawTensor const& raw, Range experts) {
  auto const expert = raw.bytes.size() / raw.shape[0];
  Bytes const part{raw.bytes.begin() + std::ptrdiff_t(experts.begin * expert),
                   raw.bytes.begin() + std::ptrdiff_t(experts.end * expert)};
  return test::swap_axes(part, {experts.size(), raw.shape[1], raw.shape[2]}, 2);
}

/// BF16 as F32: the same bits with zeros below.
Bytes widened(Bytes const& bf16) {
  Bytes f32(2 * bf16.size());
  for (std::size_t i = 0; i < bf16.size(); ++i) f32[i / 2 * 4 + 2 + i % 2] = bf16[i];
  return f32;
}

Bytes held(ShardedTensor const& tensor) {
  auto const span = tensor.data.span();
  return {span.begin(), span.end()};
}

/// The meshes of 1 to 5 ranks with any width of `ep`, and one with more ranks than experts.
std::vector<Mesh> meshes() {
  std::vector<Mesh> all{make_mesh(9)};
  for (int ranks = 1; ranks <= 5; ++ranks) {
    for (int ep = 1; ep <= ranks; ++ep) {
      if (ranks % ep == 0) all.push_back(make_mesh(ranks, ep));
    }
  }
  return all;
}

class RankLocal : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = std::make_unique<test::TempDir>();
    synthesize(path(), {.layers = 2, .experts = kExperts});
    raw_ = test::read_raw_tensors(path());
  }
  static void TearDownTestSuite() {
    dir_.reset();
    raw_.clear();
  }
  static std::string path() { return dir_->file("checkpoint"); }
  static std::shared_ptr<Checkpoint const> source() { return open_checkpoint(path()); }
  static std::string const& key_of(StateDict const& state, ShardedTensor const& tensor) {
    return state.source->model.key_of(tensor.parameter);
  }
  static StateDict load_rank(Mesh const& mesh, int rank, LoadOptions const& options = {}) {
    return load(source(), mesh, mesh.coordinate(rank), options);
  }

  /// Run `check` for every rank of every mesh.
  template <typename Check>
  static void for_every_rank(Check const& check) {
    for (auto const& mesh : meshes()) {
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        SCOPED_TRACE(testing::Message() << "rank " << rank << " of " << mesh.ep_replicate << " x " << mesh.ep);
        check(load_rank(mesh, rank), mesh, rank);
      }
    }
  }

  static std::unique_ptr<test::TempDir> dir_;
  static std::map<std::string, test::RawTensor> raw_;
};

std::unique_ptr<test::TempDir> RankLocal::dir_;
std::map<std::string, test::RawTensor> RankLocal::raw_;

bool is_stacked(std::string const& hf_key) {
  return hf_key.ends_with("mlp.experts.gate_up_proj") || hf_key.ends_with("mlp.experts.down_proj");
}

bool is_widened(std::string const& hf_key) { return hf_key.ends_with(".linear_attn.dt_bias"); }

// Rules 9, 35, 55: every byte from the raw files, through another implementation.
TEST_F(RankLocal, EveryTensorIsItsPartOfTheFileInTheNativeForm) {
  for_every_rank([](StateDict const& state, Mesh const& mesh, int rank) {
    ASSERT_EQ(state.tensors.size(), raw_.size());
    std::size_t stacked = 0, converted = 0;
    auto const experts = experts_of(kExperts, mesh, rank);
    for (auto const& [fqn, tensor] : state.tensors) {
      auto const& key = key_of(state, tensor);
      auto const& raw = raw_.at(key);
      auto expected = raw.bytes;
      if (is_stacked(key)) expected = native_experts(raw, experts);
      if (is_widened(key)) expected = widened(raw.bytes);
      EXPECT_TRUE(held(tensor) == expected) << key;
      stacked += is_stacked(key);
      converted += is_widened(key);
    }
    EXPECT_EQ(stacked, 2U * 3);  // two decoder layers and the MTP block
    EXPECT_EQ(converted, 2U);
  });
}

// Rules 9, 10, 12, 16: a slice says where it stands in the whole, whatever its own size.
TEST_F(RankLocal, Rule12_TensorsCarryGlobalShapesOffsetsAndPlacements) {
  Placement const replicate{};
  Placement const experts_axis{.kind = Placement::Kind::shard, .dim = 0};
  Placement const rows_axis{.kind = Placement::Kind::shard, .dim = 1};
  for_every_rank([&](StateDict const& state, Mesh const& mesh, int rank) {
    EXPECT_EQ(state.mesh, mesh);
    EXPECT_EQ(mesh.rank(state.coordinate), rank);
    auto const experts = experts_of(kExperts, mesh, rank);
    for (auto const& [fqn, tensor] : state.tensors) {
      auto const& parameter = tensor.parameter;
      auto const& key = key_of(state, tensor);
      auto global = raw_.at(key).shape;
      auto local = global;
      Shape offsets(global.size(), 0);
      if (is_stacked(key)) {
        std::swap(global[1], global[2]);
        local = {experts.size(), global[1], global[2]};
        offsets[0] = experts.begin;
        // rule 16: `ep_shard`, though of size 1, is there as soon as the mesh has more than `ep`
        auto const on_ep_shard = mesh.ep_replicate > 1 ? rows_axis : replicate;
        EXPECT_THAT(tensor.placements, ElementsAre(replicate, on_ep_shard, experts_axis)) << fqn;
      } else {
        EXPECT_THAT(tensor.placements, ElementsAre(replicate, replicate, replicate)) << fqn;
      }
      EXPECT_EQ(parameter.fqn, fqn);
      EXPECT_EQ(parameter.shape, global) << fqn;
      EXPECT_EQ(tensor.local_shape, local) << fqn;
      EXPECT_EQ(tensor.offsets, offsets) << fqn;
      EXPECT_EQ(tensor.data.bytes, byte_size(parameter.dtype, local)) << fqn;
      EXPECT_EQ(state.source->model.parameters[tensor.index].fqn, fqn);
    }
  });
}

TEST_F(RankLocal, Rule9_TheRanksOfAMeshTileTheExperts) {
  for (auto const& mesh : meshes()) {
    std::vector<int> owners(kExperts, 0);
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      auto const state = load_rank(mesh, rank, {.verify = VerifyLevel::off});
      auto const& tensor = state.tensors.at("model.language_model.layers.1.mlp.experts.down_projs");
      auto const& part = tensor.slice().part;
      for (auto e = part.begin; e < part.end; ++e) ++owners[e];
    }
    EXPECT_THAT(owners, testing::Each(mesh.ep_replicate));
  }
}

// Rule 42, ours: a rank without experts still has the tensor.
TEST_F(RankLocal, Rule42_ARankWithoutExpertsHoldsEmptyTensors) {
  auto const state = load_rank(make_mesh(9), 8);
  auto const& tensor = state.tensors.at("model.language_model.layers.0.mlp.experts.gate_and_up_projs");
  EXPECT_EQ(tensor.local_shape, (Shape{0, 256, 192}));  // [E, H, 2I] of the tiny preset
  EXPECT_EQ(tensor.parameter.shape, (Shape{7, 256, 192}));
  EXPECT_EQ(tensor.offsets, (Shape{7, 0, 0}));
  EXPECT_EQ(tensor.data.bytes, 0U);
  EXPECT_TRUE(verify(state).ok());
}

TEST_F(RankLocal, EveryRankProvesWhatItHolds) {
  for_every_rank([](StateDict const& state, Mesh const& mesh, int rank) {
    auto const report = verify(state);
    EXPECT_TRUE(report.ok());
    EXPECT_EQ(report.level, VerifyLevel::full);
    EXPECT_EQ(report.reference, "none");
    EXPECT_EQ(report.tensors, raw_.size());
    auto const mine = experts_of(kExperts, mesh, rank).size();
    EXPECT_EQ(report.experts, mine * 2 * 3) << "it proves its own experts alone";
  });
}

TEST_F(RankLocal, AChangedElementIsNamedByLayerExpertAndRank) {
  auto const state = load_rank(make_mesh(3), 1);  // experts 3 and 4
  auto const& tensor = state.tensors.at("model.language_model.layers.1.mlp.experts.down_projs");
  tensor.data.span().back() ^= std::byte{1};
  auto const report = verify(state);
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_EQ(report.mismatches[0].expert, 4);
  EXPECT_EQ(report.mismatches[0].rank, 1);
  EXPECT_THAT(report.mismatches[0].what, HasSubstr("rank 1: layer 1, expert 4 of"));
}

TEST_F(RankLocal, WhatWasNotDigestedCannotBeProved) {
  auto const state = load_rank(make_mesh(2), 0, {.verify = VerifyLevel::off});
  EXPECT_THROW((void)verify(state), PlanError);
  EXPECT_TRUE(verify(state, {.level = VerifyLevel::off}).ok());
}

TEST_F(RankLocal, ErasingATensorFreesItAloneAndCopiesKeepIt) {
  auto state = load_rank(make_mesh(2), 0);
  constexpr auto kName = "model.language_model.embed_tokens.weight";
  std::weak_ptr<std::byte> const memory = state.tensors.at(kName).data.data;
  std::optional<Buffer> copy = state.tensors.at(kName).data;
  state.tensors.erase(kName);
  EXPECT_FALSE(memory.expired()) << "a copy of the buffer still holds it";
  copy.reset();
  EXPECT_TRUE(memory.expired());
  EXPECT_EQ(held(state.tensors.at("lm_head.weight")), raw_.at("lm_head.weight").bytes);
}

TEST_F(RankLocal, OnlyTheSelectedKeysAreReadAndProved) {
  std::vector<std::string> asked;
  auto const state = load_rank(make_mesh(2), 1, {.keys = [&](std::string_view key) {
                                 asked.emplace_back(key);
                                 return key.find("layers.1.mlp.experts") != std::string_view::npos;
                               }});
  std::vector<std::string> held_names;
  for (auto const& [fqn, tensor] : state.tensors) held_names.push_back(fqn);
  EXPECT_THAT(held_names, ElementsAre("model.language_model.layers.1.mlp.experts.down_projs",
                                      "model.language_model.layers.1.mlp.experts.gate_and_up_projs"));
  std::vector<std::string> every_key;
  for (auto const& [key, tensor] : raw_) every_key.push_back(key);
  EXPECT_THAT(asked, testing::UnorderedElementsAreArray(every_key)) << "HF keys, each once";
  auto const report = verify(state);
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.tensors, 2U);
}

TEST_F(RankLocal, AStopTokenStopsLoadingAndProving) {
  std::stop_source stop;
  auto const state = load_rank(make_mesh(1), 0);
  std::uint64_t blocks = 0;
  CallOptions const call{.progress =
                             [&](Progress const&) {
                               if (++blocks == 3) stop.request_stop();
                             },
                         .stop = stop.get_token()};
  EXPECT_THROW(load_rank(make_mesh(1), 0, {.call = call}), Interrupted);
  EXPECT_EQ(blocks, 3U);
  EXPECT_THROW((void)verify(state, {.call = call}), Interrupted);
}

TEST_F(RankLocal, ProgressCountsTheBytesThatAreRead) {
  std::vector<Progress> seen;
  auto const state = load_rank(make_mesh(2), 1, {.call = {.progress = [&](Progress const& p) { seen.push_back(p); }}});
  std::uint64_t expected = 0;
  for (auto const& [key, raw] : raw_) expected += is_stacked(key) ? raw.bytes.size() / kExperts * 3 : raw.bytes.size();
  ASSERT_FALSE(seen.empty());
  std::uint64_t last = 0;
  for (auto const& progress : seen) {
    EXPECT_EQ(progress.phase, "load");
    EXPECT_EQ(progress.total, expected);
    EXPECT_GT(progress.done, last);
    last = progress.done;
  }
  EXPECT_EQ(last, expected);
}

TEST_F(RankLocal, ASliceOutsideTheMeshCannotBeLoaded) {
  for (auto const& mesh : {Mesh{1, 1, 0}, Mesh{1, 0, 1}, Mesh{0, 1, 1}, Mesh{1, 1, -2}}) {
    EXPECT_THROW((void)load(source(), mesh, MeshCoordinate{}), PlanError);
  }
  for (auto const& at : {MeshCoordinate{.ep = 2}, MeshCoordinate{.ep = -1}, MeshCoordinate{.ep_shard = 1}}) {
    EXPECT_THROW((void)load(source(), make_mesh(2), at), PlanError);
  }
}

TEST_F(RankLocal, AStateThatIsNotWhatItSaysIsNeitherProvedNorSaved) {
  auto const right = load_rank(make_mesh(2), 1);
  auto const expect_refused = [&](std::string const& message, std::function<void(StateDict&)> const& change) {
    auto state = right;
    change(state);
    auto const folder = dir_->file("never");
    for (auto const& use : {std::function([&] { (void)verify(state); }), {[&] { save_shard(state, folder); }}}) {
      try {
        use();
        ADD_FAILURE() << "accepted: " << message;
      } catch (PlanError const& error) {
        EXPECT_THAT(error.what(), HasSubstr(message));
      }
    }
    EXPECT_FALSE(std::filesystem::exists(folder));
  };
  constexpr auto kDown = "model.language_model.layers.1.mlp.experts.down_projs";
  constexpr auto kOtherDown = "model.language_model.layers.0.mlp.experts.down_projs";
  expect_refused("no source", [](StateDict& state) { state.source.reset(); });
  expect_refused("outside the mesh of 1 × 1 × 2 ranks", [](StateDict& state) { state.coordinate.ep = 2; });
  expect_refused("a mesh of 1 × 0 × 2 ranks", [](StateDict& state) { state.mesh.ep_shard = 0; });
  expect_refused("is not parameter", [&](StateDict& state) { state.tensors.at(kDown).index = ~0U; });
  expect_refused("is no slice of", [&](StateDict& state) { state.tensors.at(kDown).offsets.clear(); });
  expect_refused("under this name",
                 [&](StateDict& state) { std::swap(state.tensors.at(kDown), state.tensors.at(kOtherDown)); });
}

TEST_F(RankLocal, NoMpiIsLoaded) {
  std::ifstream stream("/proc/self/maps");
  std::string const maps{std::istreambuf_iterator<char>(stream), {}};
  ASSERT_THAT(maps, HasSubstr("libc.so"));
  EXPECT_THAT(maps, testing::Not(HasSubstr("libmpi")));
}

// ---- memory ----

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// A line of /proc/self/status, in bytes.
std::uint64_t status(std::string const& field) {
  std::ifstream stream("/proc/self/status");
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with(field + ":")) return std::stoull(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

bool reset_peak() {
  std::ofstream stream("/proc/self/clear_refs");
  stream << "5" << std::flush;
  return stream.good();
}

TEST(RankLocalMemory, LoadingNeedsTheOwnedBytesAndABoundedBuffer) {
  if (kSanitized) GTEST_SKIP() << "sanitizers keep memory of their own";
  test::TempDir const dir;
  auto const path = dir.file("checkpoint");
  auto const bytes = synthesize(path, {.experts = 272}).bytes;
  ASSERT_GT(bytes, 200'000'000U);
  auto const source = open_checkpoint(path);
  auto const mesh = make_mesh(4);
  if (!reset_peak()) GTEST_SKIP() << "the system does not let a process reset its peak";
  auto const before = status("VmRSS");

  auto const state = load(source, mesh, mesh.coordinate(1));

  auto const growth = status("VmHWM") - before;
  std::uint64_t owned = 0;
  for (auto const& [fqn, tensor] : state.tensors) owned += tensor.data.bytes;
  ASSERT_LT(owned, bytes / 3) << "a quarter of the experts and all dense tensors";
  EXPECT_GE(growth, owned * 9 / 10) << "the peak was not measured";
  EXPECT_LE(growth, owned + 64_MiB);
}

}  // namespace
}  // namespace rankslice
