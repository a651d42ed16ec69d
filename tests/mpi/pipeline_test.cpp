// The main job through the library, on every rank count: load, prove, store, export, compare bytes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/job_fixture.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

class PipelineTest : public JobTest {
 protected:
  static StateDict load_all() {
    auto const source = open_checkpoint(checkpoint(), world());
    return load(source, make_mesh(world().size()), world());
  }

  /// The tensor at this FQN, if this rank holds any of it.
  static ShardedTensor& stacked(StateDict& state) {
    return state.tensors.at("model.language_model.layers.1.mlp.experts.gate_and_up_projs");
  }

  /// In the file and in memory.
  static std::uint64_t expert_bytes(ShardedTensor const& tensor) {
    return tensor.parameter.shape[1] * tensor.parameter.shape[2] * 2;
  }

  static void expect_equal_folders(std::string const& expected, std::string const& found) {
    if (world().rank() != 0) return;
    auto const want = files_below(expected);
    auto const have = files_below(found);
    std::vector<std::string> want_names, have_names;
    for (auto const& [name, bytes] : want) want_names.push_back(name);
    for (auto const& [name, bytes] : have) have_names.push_back(name);
    ASSERT_EQ(have_names, want_names);
    for (auto const& [name, bytes] : want) EXPECT_TRUE(have.at(name) == bytes) << name << " differs";
  }
};

TEST_F(PipelineTest, Rule62_LoadedStateIsProvedAndGivesTheSourceBackByteForByte) {
  auto const state = load_all();
  auto const report = verify(state, world());
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.reference, "none");
  EXPECT_EQ(report.experts, 7U * 2 * 5);  // gate_up and down, in four decoder layers and one of MTP

  to_hf(state, path("from_state"), world());
  expect_equal_folders(checkpoint(), path("from_state"));
}

TEST_F(PipelineTest, StoreIsReferenceWhenLoadedAndExportsTheSource) {
  save_store(load_all(), path("s.h5"), world());
  auto const store = open_checkpoint(path("s.h5"), world(), {.store = &native_store()});
  EXPECT_EQ(store->format, CheckpointFormat::store);

  auto const state = load(store, make_mesh(world().size()), world());
  auto const report = verify(state, world());
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.reference, "store");

  to_hf(*store, path("from_store"), world());
  expect_equal_folders(checkpoint(), path("from_store"));
  to_hf(state, path("from_loaded_store"), world());
  expect_equal_folders(checkpoint(), path("from_loaded_store"));
}

TEST_F(PipelineTest, ShardsGiveTheSourceBack) {
  save_shards(load_all(), path("shards"), world());
  auto const shards = open_checkpoint(path("shards"), world());
  EXPECT_EQ(shards->format, CheckpointFormat::shards);
  to_hf(*shards, path("from_shards"), world());
  expect_equal_folders(checkpoint(), path("from_shards"));
}

TEST_F(PipelineTest, ReplicasOfTheMeshShareTheExport) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for ep_replicate 2 × ep 2";
  auto const source = open_checkpoint(checkpoint(), world());
  auto const state = load(source, make_mesh(4, 2), world());
  EXPECT_TRUE(verify(state, world()).ok());
  to_hf(state, path("from_replicas"), world());
  expect_equal_folders(checkpoint(), path("from_replicas"));
  save_store(state, path("from_replicas.h5"), world());
  auto const store = open_checkpoint(path("from_replicas.h5"), world(), {.store = &native_store()});
  EXPECT_TRUE(verify(*store, world(), {.against = source.get()}).ok());
}

TEST_F(PipelineTest, OneChangedElementChangesExactlyItsBytes) {
  auto state = load_all();
  auto& tensor = stacked(state);                                  // native [E, H, 2I]
  constexpr std::uint64_t kExpert = 4, kColumn = 10, kRow = 100;  // of the HF matrix [2I, H]: row 100, column 10
  auto const width = tensor.parameter.shape[2];
  if (auto const held = tensor.slice().part; held.begin <= kExpert && kExpert < held.end) {
    auto const expert = (kExpert - held.begin) * expert_bytes(tensor);
    auto* const element = tensor.data.data.get() + expert + (kColumn * width + kRow) * 2;
    element[0] ^= std::byte{0x5a};
    element[1] ^= std::byte{0x01};
  }
  to_hf(state, path("changed"), world());

  if (world().rank() == 0) {
    auto const& catalog = state.source->catalog;
    auto const& matrices = catalog.tensors[tensor.parameter.tensors.front()];
    auto const& place = matrices.extent;
    auto const offset = place.bytes.begin + kExpert * expert_bytes(tensor) + (kRow * matrices.shape[2] + kColumn) * 2;
    auto want = files_below(checkpoint());
    auto& file = want.at(catalog.files[place.file].name);
    file[offset] = static_cast<char>(file[offset] ^ 0x5a);
    file[offset + 1] = static_cast<char>(file[offset + 1] ^ 0x01);
    EXPECT_TRUE(files_below(path("changed")) == want);
  }
  EXPECT_FALSE(verify(state, world()).ok()) << "held is no longer what was read";
}

// What loading could do wrong, done on purpose to the finished state: each is found, and named, without a reference.
TEST_F(PipelineTest, Rule62_SwappedExpertsAreNamedWithTheExpertWhoseValuesTheyHold) {
  auto state = load_all();
  auto& tensor = stacked(state);
  if (tensor.slice().part.size() >= 2) {  // all ranks but the last of 4
    auto const bytes = expert_bytes(tensor);
    std::swap_ranges(tensor.data.data.get(), tensor.data.data.get() + bytes, tensor.data.data.get() + bytes);
  }
  auto const report = verify(state, world());
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(report.mismatches.front().what,
              testing::AllOf(HasSubstr("rank 0: layer 1, expert 0"), HasSubstr("holds the values of expert 1")));
  EXPECT_EQ(report.mismatches.front().expert, 0);
}

TEST_F(PipelineTest, SwappedGateAndUpAreFound) {
  auto state = load_all();
  auto& tensor = stacked(state);
  auto const half = tensor.parameter.shape[2] / 2 * 2;  // bytes of gate, then of up, in each row of an expert
  for (auto* row = tensor.data.data.get(); row < tensor.data.data.get() + tensor.data.bytes; row += 2 * half) {
    std::swap_ranges(row, row + half, row + half);
  }
  EXPECT_EQ(verify(state, world()).mismatches.size(), 7U);
}

TEST_F(PipelineTest, ADenseTensorThatDiffersOnOneRankIsFound) {
  auto state = load_all();
  auto const last = world().size() - 1;
  if (world().rank() == last) *state.tensors.at("lm_head.weight").data.data ^= std::byte{1};
  auto const report = verify(state, world());
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_EQ(report.mismatches.front().tensor, "lm_head.weight");
  EXPECT_EQ(report.mismatches.front().rank, last);
}

TEST_F(PipelineTest, ATrainedF32ValueGoesHomeRoundedToTheTypeOfTheSource) {
  auto state = load_all();
  constexpr auto kName =
      "model.language_model.layers.0.linear_attn._fp32_params.dt_bias";  // BF16 in the files (rule 57)
  auto& tensor = state.tensors.at(kName);
  std::uint32_t word = 0;
  std::memcpy(&word, tensor.data.data.get(), sizeof word);
  ASSERT_EQ(word & 0xffff, 0U) << "a widened BF16 value has no lower half";
  word |= 0x9000;  // more than half of a BF16 step: rounds away from zero
  std::memcpy(tensor.data.data.get(), &word, sizeof word);

  save_shards(state, path("trained"), world());
  save_store(state, path("trained.h5"), world());
  to_hf(state, path("home1"), world());
  to_hf(*open_checkpoint(path("trained"), world()), path("home2"), world());
  to_hf(*open_checkpoint(path("trained.h5"), world(), {.store = &native_store()}), path("home3"), world());

  auto const& catalog = state.source->catalog;
  auto const& extent = catalog.tensors[tensor.parameter.tensors.front()].extent;
  auto want = files_below(checkpoint());
  auto* const element = want.at(catalog.files[extent.file].name).data() + extent.bytes.begin;
  auto const rounded = static_cast<std::uint16_t>((word >> 16) + 1);
  std::memcpy(element, &rounded, sizeof rounded);
  for (auto const* name : {"home1", "home2", "home3"}) EXPECT_TRUE(files_below(path(name)) == want) << name;
  on_every_rank(world(), [] {});  // nobody starts the next test while another still compares
}

TEST_F(PipelineTest, CopiesInShardFilesThatDifferAreNamed) {
  if (world().size() == 1) GTEST_SKIP() << "needs two shard files";
  save_shards(load_all(), path("copies"), world());
  auto const shards = open_checkpoint(path("copies"), world());
  if (world().rank() == 0) {  // one bit of rank 1's copy of a dense tensor
    auto const& pieces = shards->storage.pieces;
    auto const piece = std::ranges::find_if(pieces, [&](StoredPiece const& each) {
      return each.extent.file == 1 && shards->model.parameters[each.parameter].fqn == "lm_head.weight";
    });
    std::fstream file(shards->storage.files[1].path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(piece->extent.bytes.begin));
    auto const byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(piece->extent.bytes.begin));
    file.put(byte);
  }
  auto const changed = open_checkpoint(path("copies"), world());
  for (auto const& use : {std::function([&] { to_hf(*changed, path("copied"), world()); }),
                          std::function([&] { (void)verify(*changed, world()); })}) {
    try {
      use();
      FAIL() << "took one of two different copies";
    } catch (VerifyError const& error) {
      EXPECT_THAT(error.what(),
                  testing::AllOf(HasSubstr("lm_head.weight: the copies in"), HasSubstr("rank-00001.safetensors")));
    }
  }
}

TEST_F(PipelineTest, ATensorThatNoRankHoldsIsMissed) {
  auto state = load_all();
  state.tensors.erase("lm_head.weight");
  auto const report = verify(state, world(), {.level = VerifyLevel::coverage});
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_EQ(report.mismatches.front().what, "lm_head.weight: missing");
}

TEST_F(PipelineTest, Rule62_ExpertsThatNoRankOrTwoRanksHoldAreNamed) {
  auto state = load_all();
  auto& tensor = stacked(state);
  auto const last = world().rank() == world().size() - 1;
  if (last) {  // says that its experts are one further on, and drops the last one, which would be outside
    auto const bytes = expert_bytes(tensor);
    ++tensor.offsets[0];
    --tensor.local_shape[0];
    tensor.data.bytes -= bytes;
  }
  auto const against_mesh = verify(state, world(), {.level = VerifyLevel::coverage});
  EXPECT_EQ(against_mesh.mismatches.size(), 2U) << "and it is not what the mesh gives";
  tensor.placements.clear();  // divided by the caller
  auto const report = verify(state, world(), {.level = VerifyLevel::coverage});
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_THAT(report.mismatches.front().what, HasSubstr("held by no rank"));
}

TEST_F(PipelineTest, TheStateOfAnotherRankIsNotWrittenAsTheWhole) {
  auto const source = open_checkpoint(checkpoint(), world());
  auto const state = load(source, make_mesh(world().size() + 1), MeshCoordinate{});  // one rank's share of a larger job
  EXPECT_THROW(to_hf(state, path("part"), world()), Error);
  EXPECT_THROW(save_store(state, path("part"), world()), Error);
  EXPECT_THROW(save_shards(state, path("part"), world()), Error);
  EXPECT_THROW((void)verify(state, world()), Error);
  EXPECT_FALSE(std::filesystem::exists(path("part")));
}

TEST_F(PipelineTest, RanksWithDifferentCheckpointsAreTold) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto const odd = world().rank() == 1;
  if (odd) synthesize(path("other"), {.experts = 5});
  auto const solo = make_solo_communicator();
  auto const source = open_checkpoint(odd ? path("other") : checkpoint(), *solo);
  auto const mesh = make_mesh(world().size());
  auto const state = load(source, mesh, mesh.coordinate(world().rank()));
  auto const report = verify(state, world());
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_THAT(report.mismatches.front().what, HasSubstr("rank 1: its"));
}

TEST_F(PipelineTest, AStopTokenAndAThrowingCallbackEndTheCallOnEveryRank) {
  std::stop_source stop;
  if (world().rank() == world().size() - 1) stop.request_stop();
  auto const source = open_checkpoint(checkpoint(), world());
  EXPECT_THROW((void)load(source, make_mesh(world().size()), world(), {.call = {.stop = stop.get_token()}}),
               Interrupted);

  auto const state = load_all();
  CallOptions const throwing{.progress = [&](Progress const& progress) {
    if (world().rank() == 0 && progress.done > progress.total / 2) throw Interrupted(ExitCode::terminated);
  }};
  try {
    save_store(state, path("stopped.h5"), world(), {.call = throwing});
    FAIL() << "was not stopped";
  } catch (Interrupted const& error) {
    EXPECT_EQ(error.code, ExitCode::terminated);
  }
  EXPECT_FALSE(std::filesystem::exists(path("stopped.h5")));
}

TEST_F(PipelineTest, ProgressCoversAllPassesOfACallOnce) {
  auto const state = load_all();
  std::uint64_t last = 0, total = 0;
  CallOptions const call{.progress = [&](Progress const& progress) {
    if (progress.phase != "store") return;
    EXPECT_GT(progress.done, last);
    last = progress.done;
    total = progress.total;
  }};
  save_store(state, path("progress.h5"), world(), {.call = call});
  EXPECT_EQ(last, total);
  EXPECT_GT(total, 0U);
}

TEST_F(PipelineTest, ReplicasThatDifferAreNotMixedIntoOneCheckpoint) {
  if (world().size() == 1) GTEST_SKIP() << "needs replicas";
  auto state = load_all();
  if (world().rank() == 1) *state.tensors.at("lm_head.weight").data.data ^= std::byte{1};
  for (auto const& save : {std::function([&] { to_hf(state, path("mixed"), world()); }),
                           std::function([&] { save_store(state, path("mixed"), world()); }),
                           std::function([&] { save_shards(state, path("mixed"), world()); })}) {
    try {
      save();
      FAIL() << "saved a mixture";
    } catch (VerifyError const& error) {
      EXPECT_THAT(error.what(), HasSubstr("rank 1: lm_head.weight"));
    }
    EXPECT_FALSE(std::filesystem::exists(path("mixed")));
  }
}

TEST_F(PipelineTest, AMissingTensorOnOneRankIsAnErrorOfAll) {
  auto state = load_all();
  if (world().rank() == world().size() - 1) state.tensors.erase("lm_head.weight");
  try {
    to_hf(state, path("incomplete"), world());
    FAIL() << "exported without lm_head.weight";
  } catch (Error const& error) {
    EXPECT_THAT(error.what(), HasSubstr("lm_head.weight"));
    EXPECT_EQ(error.rank, world().size() == 1 ? error.rank : world().size() - 1);
  }
  EXPECT_FALSE(std::filesystem::exists(path("incomplete")));
}

TEST_F(PipelineTest, SelectedKeysAreLoadedAndProvedAlone) {
  auto const source = open_checkpoint(checkpoint(), world());
  auto const state =
      load(source, make_mesh(world().size()), world(),
           {.keys = [](std::string_view key) { return key.starts_with("model.language_model.layers.2."); }});
  EXPECT_TRUE(state.tensors.contains("model.language_model.layers.2.mlp.experts.down_projs"));
  EXPECT_FALSE(state.tensors.contains("lm_head.weight"));
  EXPECT_TRUE(verify(state, world()).ok());
}

TEST_F(PipelineTest, AMeshOfAnotherSizeIsAnErrorOfAll) {
  auto const source = open_checkpoint(checkpoint(), world());
  EXPECT_THROW((void)load(source, make_mesh(world().size() + 1), world()), Error);
}

}  // namespace
}  // namespace rankslice::test
