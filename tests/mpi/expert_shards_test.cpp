// Meshes with `ep_shard`: every expert's rows (native axis 1, rule 14) are divided among ranks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <stop_token>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/job_fixture.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr auto kGateUpKey = "model.language_model.layers.1.mlp.experts.gate_up_proj";
constexpr auto kGateUpFqn = "model.language_model.layers.1.mlp.experts.gate_and_up_projs";

/// Every mesh that the ranks can be arranged in.
std::vector<Mesh> meshes_of(int ranks) {
  std::vector<Mesh> meshes;
  for (int ep = 1; ep <= ranks; ++ep) {
    for (int ep_shard = 1; ep * ep_shard <= ranks; ++ep_shard) {
      if (ranks % (ep * ep_shard) == 0) meshes.push_back(make_mesh(ranks, ep, ep_shard));
    }
  }
  return meshes;
}

class ExpertShards : public JobTest {
 protected:
  void SetUp() override {
    if (world().size() % 2 != 0) GTEST_SKIP() << "needs ranks for ep_shard 2";
  }
  static std::shared_ptr<Checkpoint const> source() { return open_checkpoint(checkpoint(), world()); }
  static Mesh sharded() { return make_mesh(world().size(), 0, 2); }
  static std::string name(Mesh const& mesh) {
    return std::to_string(mesh.ep_replicate) + "x" + std::to_string(mesh.ep_shard) + "x" + std::to_string(mesh.ep);
  }
  static void expect_the_source(std::string const& folder) {
    if (world().rank() != 0) return;
    EXPECT_TRUE(files_below(folder) == files_below(checkpoint())) << folder;
  }
  /// Change a byte of a file on rank 0, and its time.
  static void flip(std::string const& file, std::uint64_t offset) {
    if (world().rank() == 0) {
      std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
      stream.seekg(static_cast<std::streamoff>(offset));
      auto const byte = static_cast<char>(stream.get() ^ 4);
      stream.seekp(static_cast<std::streamoff>(offset));
      stream.put(byte);
    }
    on_every_rank(world(), [] {});
  }
  /// What a rank holds, by name.
  static std::map<std::string, std::vector<std::byte>> values_of(StateDict const& state) {
    std::map<std::string, std::vector<std::byte>> held;
    for (auto const& [fqn, tensor] : state.tensors) {
      auto const bytes = tensor.data.span();
      held.emplace(fqn, std::vector(bytes.begin(), bytes.end()));
    }
    return held;
  }
  static std::vector<std::string> found(VerifyReport const& report) {
    std::vector<std::string> what;
    for (auto const& mismatch : report.mismatches) what.push_back(mismatch.what);
    return what;
  }
};

TEST_F(ExpertShards, Rules14And46_HoldTheirColumnsOfTheStoredMatrices) {
  auto const state = load(source(), sharded(), world());
  auto const& tensor = state.tensors.at(kGateUpFqn);
  auto const& global = tensor.parameter.shape;  // [E, H, 2I]
  auto const slice = tensor.slice();
  EXPECT_EQ(slice.rows.size(), global[1] / 2);
  EXPECT_EQ(slice.rows.begin, state.coordinate.ep_shard == 0 ? 0 : global[1] / 2);

  auto const& stored = state.source->catalog.tensors[tensor.parameter.tensors.front()];  // [E, 2I, H]
  auto const file = files_below(checkpoint()).at(state.source->catalog.files[stored.extent.file].name);
  std::uint64_t differ = 0, next = 0;
  for (auto expert = slice.part.begin; expert < slice.part.end; ++expert) {
    for (auto row = slice.rows.begin; row < slice.rows.end; ++row) {
      for (std::uint64_t column = 0; column < global[2]; ++column, next += 2) {
        auto const at = stored.extent.bytes.begin + ((expert * global[2] + column) * global[1] + row) * 2;
        for (auto const byte : {std::uint64_t{0}, std::uint64_t{1}}) {
          if (tensor.data.data.get()[next + byte] != static_cast<std::byte>(file[at + byte])) ++differ;
        }
      }
    }
  }
  EXPECT_EQ(differ, 0U);
  EXPECT_EQ(next, tensor.data.bytes);
}

TEST_F(ExpertShards, OfEveryMeshAreProvedAndGiveTheSourceBack) {
  for (auto const& mesh : meshes_of(world().size())) {
    SCOPED_TRACE(name(mesh));
    auto const state = load(source(), mesh, world());
    EXPECT_THAT(found(verify(state, world())), testing::IsEmpty());
    to_hf(state, path("home-" + name(mesh)), world());
    expect_the_source(path("home-" + name(mesh)));
  }
}

TEST_F(ExpertShards, GoFromTheStoreOfOneMeshToEveryOther) {
  auto const hf = source();
  save_store(load(hf, sharded(), world()), path("sharded.h5"), world());
  auto const store = open_checkpoint(path("sharded.h5"), world(), {.store = &native_store()});
  EXPECT_TRUE(verify(*store, world(), {.against = hf.get()}).ok());
  for (auto const& mesh : meshes_of(world().size())) {
    SCOPED_TRACE(name(mesh));
    auto const state = load(store, mesh, world());
    auto const report = verify(state, world(), {.against = hf.get()});
    EXPECT_THAT(found(report), testing::IsEmpty());
    EXPECT_EQ(report.reference, "against");
    to_hf(state, path("store-" + name(mesh)), world());
    expect_the_source(path("store-" + name(mesh)));
  }
  to_hf(*store, path("store-home"), world());
  expect_the_source(path("store-home"));
}

TEST_F(ExpertShards, GoFromTheShardsOfOneMeshToEveryOther) {
  save_shards(load(source(), sharded(), world()), path("shards"), world());
  auto const shards = open_checkpoint(path("shards"), world());
  for (auto const& mesh : meshes_of(world().size())) {
    SCOPED_TRACE(name(mesh));
    auto const state = load(shards, mesh, world());
    EXPECT_THAT(found(verify(state, world())), testing::IsEmpty());
    to_hf(state, path("shards-" + name(mesh)), world());
    expect_the_source(path("shards-" + name(mesh)));
  }
}

TEST_F(ExpertShards, OfEveryMeshGiveTheSourceBackFromTheirFiles) {
  for (auto const& mesh : meshes_of(world().size())) {
    SCOPED_TRACE(name(mesh));
    auto const folder = path("shards-of-" + name(mesh));
    save_shards(load(source(), mesh, world()), folder, world());
    to_hf(*open_checkpoint(folder, world()), folder + "-home", world());
    expect_the_source(folder + "-home");
  }
}

TEST_F(ExpertShards, ReadAtMostAsManyTimesAsThereAreShardsAndWantEveryByteOnce) {
  auto const hf = source();
  for (auto const& mesh : meshes_of(world().size())) {
    std::uint64_t read = 0;
    CallOptions const call{.progress = [&](Progress const& progress) {
      read = progress.done;
      EXPECT_LE(progress.done, progress.total);
    }};
    auto const state = load(hf, mesh, world(), {.call = call});
    std::uint64_t wanted = 0, dense = 0;
    for (auto const& [fqn, tensor] : state.tensors) {
      auto const bytes = tensor.parameter.bytes(tensor.slice(), Form::hf);
      (tensor.parameter.stacked_experts ? wanted : dense) += bytes;
    }
    EXPECT_EQ(read, dense + wanted * static_cast<std::uint64_t>(mesh.ep_shard)) << name(mesh);
  }
}

TEST_F(ExpertShards, AreReadOnceByTheRanksThatShareThemAndHeldAsIfEachHadReadThem) {
  auto const hf = source();
  for (auto const& mesh : meshes_of(world().size())) {
    SCOPED_TRACE(name(mesh));
    std::uint64_t done = 0, total = 0;
    CallOptions const call{.progress = [&](Progress const& progress) {
      done = progress.done;
      total = progress.total;
    }};
    auto const alone = load(hf, mesh, world(), {.dense = DenseReading::each_rank});
    auto const once = load(hf, mesh, world(), {.dense = DenseReading::once, .call = call});
    EXPECT_EQ(done, total);
    for (auto const& [fqn, tensor] : alone.tensors) {
      EXPECT_TRUE(std::ranges::equal(tensor.data.span(), once.tensors.at(fqn).data.span())) << fqn;
      if (!tensor.parameter.stacked_experts) continue;  // of dense tensors a rank knows only its share
      for (auto const index : tensor.parameter.tensors) {
        EXPECT_TRUE(std::ranges::equal(alone.read.source.of(index), once.read.source.of(index))) << fqn;
      }
    }
    for (auto const level : {VerifyLevel::full, VerifyLevel::reread}) {
      EXPECT_THAT(found(verify(once, world(), {.level = level})), testing::IsEmpty());
    }
  }
}

TEST_F(ExpertShards, ThatAreFilledAreReadOnceByTheRanksThatShareThem) {
  auto const hf = source();
  auto state = load(hf, sharded(), world());
  auto const as_loaded = values_of(state);
  for (auto const& [fqn, tensor] : state.tensors) std::ranges::fill(tensor.data.span(), std::byte{0x5a});
  auto const report = fill(state, world(), {.dense = DenseReading::once});
  EXPECT_EQ(values_of(state), as_loaded);
  std::vector<std::uint64_t> read{report.bytes_read};
  world().all_reduce(read, Reduce::sum);
  std::uint64_t bytes = 0;
  for (auto const& tensor : hf->catalog.tensors) bytes += tensor.extent.bytes.size();
  EXPECT_EQ(read.front(), bytes);
}

TEST_F(ExpertShards, ThatAreReadOnceAreInterruptedOnAllRanksByOne) {
  std::stop_source stop;
  std::uint64_t blocks = 0;
  CallOptions const call{.progress =
                             [&](Progress const&) {
                               if (++blocks == 40) stop.request_stop();
                             },
                         .stop = world().rank() == 1 ? stop.get_token() : std::stop_token()};
  try {
    (void)load(source(), sharded(), world(), {.dense = DenseReading::once, .call = call});
    FAIL() << "went on";
  } catch (Interrupted const& error) {
    EXPECT_EQ(error.rank, 1);
  }
}

TEST_F(ExpertShards, CountTheProgressOfAnExportToItsEnd) {
  auto const state = load(source(), sharded(), world());
  std::uint64_t last = 0, total = 0;
  CallOptions const call{.progress = [&](Progress const& progress) {
    if (progress.phase != "to_hf" || progress.total == 0) return;
    EXPECT_GT(progress.done, last);
    last = progress.done;
    total = progress.total;
  }};
  to_hf(state, path("progress"), world(), {.call = call});
  EXPECT_EQ(last, total);
  EXPECT_GT(total, 0U);
}

// ---- what is found ----

TEST_F(ExpertShards, Rule62_ABitThatFlipsInMemoryIsNamedByRankLayerAndExpert) {
  auto state = load(source(), sharded(), world());
  auto const last = world().size() - 1;
  auto& tensor = state.tensors.at(kGateUpFqn);
  if (world().rank() == last) tensor.data.data.get()[tensor.data.bytes - 1] ^= std::byte{1};
  auto const report = verify(state, world());
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_EQ(report.mismatches[0].tensor, kGateUpKey);
  EXPECT_EQ(report.mismatches[0].expert, 6);
  EXPECT_EQ(report.mismatches[0].rank, last);
  EXPECT_THAT(report.mismatches[0].what, HasSubstr("rank " + std::to_string(last) + ": layer 1, expert 6 of"));
}

TEST_F(ExpertShards, ABitThatFlipsInTheStoreIsNamedByLayerAndExpert) {
  save_store(load(source(), sharded(), world()), path("flipped.h5"), world());
  auto const before = open_checkpoint(path("flipped.h5"), world(), {.store = &native_store()});
  auto const& pieces = before->storage.pieces;
  auto const piece = *std::ranges::find_if(
      pieces, [&](StoredPiece const& each) { return before->model.parameters[each.parameter].fqn == kGateUpFqn; });
  auto const expert = piece.extent.bytes.size() / 7;
  flip(path("flipped.h5"), piece.extent.bytes.begin + 3 * expert + expert / 2 + 40);  // in the second half of its rows
  auto const store = open_checkpoint(path("flipped.h5"), world(), {.store = &native_store()});
  for (auto const& mesh : {sharded(), make_mesh(world().size())}) {
    auto const report = verify(load(store, mesh, world()), world());
    ASSERT_EQ(report.mismatches.size(), 1U) << name(mesh);
    EXPECT_EQ(report.mismatches[0].tensor, kGateUpKey);
    EXPECT_EQ(report.mismatches[0].expert, 3);
    EXPECT_THAT(report.mismatches[0].what, AllOf(HasSubstr("layer 1, expert 3 of"), HasSubstr("store digest")));
  }
}

TEST_F(ExpertShards, ABitThatFlipsInTheCheckpointIsFoundAgainstTheStore) {
  save_store(load(source(), sharded(), world()), path("reference.h5"), world());
  auto const store = open_checkpoint(path("reference.h5"), world(), {.store = &native_store()});
  to_hf(*store, path("flipped"), world());
  auto const whole = open_checkpoint(path("flipped"), world());
  auto const& tensor = *std::ranges::find(whole->catalog.tensors, kGateUpKey, &CatalogTensor::name);
  auto const expert = tensor.extent.bytes.size() / 7;
  flip(whole->catalog.files[tensor.extent.file].path, tensor.extent.bytes.begin + 5 * expert + 77);
  auto const flipped = open_checkpoint(path("flipped"), world());
  auto const report = verify(load(flipped, sharded(), world()), world(), {.against = store.get()});
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_EQ(report.mismatches[0].expert, 5);
  EXPECT_THAT(report.mismatches[0].what, HasSubstr("layer 1, expert 5 of"));
}

TEST_F(ExpertShards, WithTheirRowsInTheOthersPlaceAreFound) {
  auto state = load(source(), sharded(), world());
  auto& tensor = state.tensors.at(kGateUpFqn);
  auto const rows = tensor.slice().rows.size();
  tensor.offsets[1] = tensor.offsets[1] == 0 ? rows : 0;
  EXPECT_FALSE(verify(state, world(), {.level = VerifyLevel::coverage}).ok()) << "the mesh gives others";
  tensor.placements.clear();  // divided by the caller
  EXPECT_TRUE(verify(state, world(), {.level = VerifyLevel::coverage}).ok()) << "nothing is missing";
  std::uint64_t experts = 0;
  for (auto const& mismatch : verify(state, world()).mismatches) {
    EXPECT_EQ(mismatch.tensor, kGateUpKey);
    ++experts;
  }
  EXPECT_EQ(experts, 2U * 7) << "every expert on both of its ranks";
}

TEST_F(ExpertShards, OfReplicasThatDifferAreNamedAndNotSaved) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for ep_replicate 2 × ep_shard 2";
  auto state = load(source(), make_mesh(4, 1, 2), world());
  if (world().rank() == 3) *state.tensors.at(kGateUpFqn).data.data ^= std::byte{1};
  for (auto const& save : {std::function([&] { to_hf(state, path("mixed"), world()); }),
                           std::function([&] { save_store(state, path("mixed"), world()); }),
                           std::function([&] { save_shards(state, path("mixed"), world()); })}) {
    try {
      save();
      FAIL() << "saved a mixture";
    } catch (VerifyError const& error) {
      EXPECT_THAT(error.what(), HasSubstr("layer 1, expert 0 of"));
    }
    EXPECT_FALSE(std::filesystem::exists(path("mixed")));
  }
}

TEST_F(ExpertShards, WhoseCopiesInShardFilesDifferAreNamed) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for ep_replicate 2 × ep_shard 2";
  save_shards(load(source(), make_mesh(4, 1, 2), world()), path("copies"), world());
  auto const shards = open_checkpoint(path("copies"), world());
  auto const piece = *std::ranges::find_if(shards->storage.pieces, [&](StoredPiece const& each) {
    return each.extent.file == 3 && shards->model.parameters[each.parameter].fqn == kGateUpFqn;
  });
  flip(shards->storage.files[3].path, piece.extent.bytes.end - 1);
  auto const changed = open_checkpoint(path("copies"), world());
  try {
    (void)verify(*changed, world());
    FAIL() << "took one of two different copies";
  } catch (VerifyError const& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(std::string(kGateUpFqn) + ": the copies in"),
                                    HasSubstr("rank-00001.safetensors"), HasSubstr("rank-00003.safetensors")));
  }
}

class ExpertRows : public JobTest {};

// Rule 15.
TEST_F(ExpertRows, ThatDoNotDivideAreAnErrorOfAllRanksInTheDocumentedWords) {
  if (world().size() != 3) GTEST_SKIP() << "needs 3 ranks, which do not divide 256 rows";
  try {
    (void)load(open_checkpoint(checkpoint(), world()), make_mesh(3, 1, 3), world());
    FAIL() << "divided 256 rows by 3";
  } catch (Error const& error) {
    EXPECT_EQ(error.code, ExitCode::usage);
    EXPECT_THAT(error.what(), HasSubstr("Base gate_and_up_projs dim 1 (256) is not divisible by ep_shard_size=3"));
    EXPECT_THAT(error.tensor, HasSubstr("mlp.experts.gate_and_up_projs"));
  }
}

}  // namespace
}  // namespace rankslice::test
