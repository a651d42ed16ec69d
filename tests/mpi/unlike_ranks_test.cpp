// Ranks that come to a collective call with different meshes, sources or options: every rank is told, nobody waits for
// ever, and nothing is left behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "rankslice/load.hpp"
#include "rankslice/manifest.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/fp8_checkpoint.hpp"
#include "support/job_fixture.hpp"

namespace rankslice::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr auto kDownFqn = "model.language_model.layers.1.mlp.experts.down_projs";

class UnlikeRanks : public JobTest {
 protected:
  static std::shared_ptr<Checkpoint const> source() { return open_checkpoint(checkpoint(), world()); }
  static StateDict load_on(Mesh const& mesh) { return load(source(), mesh, mesh.coordinate(world().rank())); }
  static StateDict load_all() { return load_on(make_mesh(world().size())); }

  /// That every rank gets this error of that rank, and the common folder nothing.
  template <typename SomeError>
  static void expect_refused(std::function<void()> const& call, int rank, std::string const& message) {
    try {
      call();
      ADD_FAILURE() << "accepted";
    } catch (SomeError const& error) {
      EXPECT_EQ(error.rank, rank);
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
    for (auto const& entry : std::filesystem::directory_iterator(path(""))) {
      EXPECT_THAT(entry.path().filename().string(), testing::Not(HasSubstr("never")));
    }
  }
  template <typename SomeError>
  static void expect_no_save(StateDict const& state, int rank, std::string const& message) {
    expect_refused<SomeError>([&] { to_hf(state, path("never"), world()); }, rank, message);
    expect_refused<SomeError>([&] { save_store(state, path("never"), world()); }, rank, message);
    expect_refused<SomeError>([&] { save_shards(state, path("never"), world()); }, rank, message);
  }
  static void expect_unlike(StateDict const& state, int rank, std::string const& message) {
    auto const found = verify(state, world()).mismatches;
    auto const of_rank = std::ranges::find(found, rank, &Mismatch::rank);
    ASSERT_NE(of_rank, found.end());
    EXPECT_THAT(of_rank->what, HasSubstr(message));
  }
};

/// Writes a manifest of a checkpoint. Collective.
void write_manifest_of(std::string const& folder, std::string const& path, Communicator& world) {
  auto const source = open_checkpoint(folder, world);
  write_manifest(*source, digest(*source, world), path, world, {.overwrite = true});
}

// Each of these states is sound by itself, and the digests of what the ranks hold tell nothing.
TEST_F(UnlikeRanks, WithTwoMeshesAreRefusedByEveryCollectiveCall) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks for 1 × 1 × 4 and 1 × 2 × 2";
  Mesh const mesh{.ep_replicate = 1, .ep_shard = world().rank() < 2 ? 1 : 2, .ep = world().rank() < 2 ? 4 : 2};
  auto const state = load_on(mesh);
  expect_no_save<UsageError>(state, 2, "another mesh than rank 0: 1 × 2 × 2 ranks");
  expect_refused<UsageError>([&] { (void)load(source(), mesh, world()); }, 2, "another mesh than rank 0");
  expect_unlike(state, 2, "another mesh, 1 × 2 × 2");
}

TEST_F(UnlikeRanks, ThatTakeTheSameFilesForAnotherModelAreRefused) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto const change_on_rank_1 = [](std::function<void(StateDict&, Checkpoint&)> const& change) {
    auto state = load_all();
    auto changed = std::make_shared<Checkpoint>(*state.source);
    if (world().rank() == 1) change(state, *changed);
    state.source = changed;
    return state;
  };
  auto const of_another_family = change_on_rank_1([](StateDict&, Checkpoint& changed) { changed.family = "another"; });
  expect_no_save<UsageError>(of_another_family, 1, "rank 1: its state has other tensors");
  auto const in_another_layout = change_on_rank_1([](StateDict& state, Checkpoint& changed) {
    auto& tensor = state.tensors.at(kDownFqn);
    changed.model.parameters[tensor.index].layout = tensor.parameter.layout = Layout::same;
  });
  expect_no_save<UsageError>(in_another_layout, 1, "rank 1: its state has other tensors");
  expect_unlike(in_another_layout, 1, "rank 1: its");
}

// The bytes that every rank holds stay the same: only what they are said to be differs.
TEST_F(UnlikeRanks, Rule62_KeysGlobalShapesAndDtypesAreTheSameOnAllRanks) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  constexpr auto kHead = "lm_head.weight";
  auto const other_key = [](StateDict& state, Checkpoint& source) {
    auto node = state.tensors.extract(kHead);
    node.key() = node.mapped().parameter.fqn = source.model.parameters[node.mapped().index].fqn = "lm_head.wait";
    state.tensors.insert(std::move(node));
  };
  auto const other_shape = [](StateDict& state, Checkpoint& source) {
    auto& head = state.tensors.at(kHead);
    std::swap(head.local_shape[0], head.local_shape[1]);
    head.parameter.shape = source.model.parameters[head.index].shape = head.local_shape;
  };
  auto const other_dtype = [](StateDict& state, Checkpoint& source) {
    auto& head = state.tensors.at(kHead);
    auto& parameter = source.model.parameters[head.index];
    head.parameter.dtype = head.parameter.hf_dtype = parameter.dtype = parameter.hf_dtype = DType::F16;
  };
  for (auto const& change :
       std::initializer_list<std::function<void(StateDict&, Checkpoint&)>>{other_key, other_shape, other_dtype}) {
    auto state = load_all();
    auto changed = std::make_shared<Checkpoint>(*state.source);
    if (world().rank() == 1) change(state, *changed);
    state.source = changed;
    expect_unlike(state, 1, "other names, dtypes, layouts or global shapes than those of rank 0");
  }
}

TEST_F(UnlikeRanks, ThatWouldExportOtherFilesAreRefused) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto const odd = world().rank() == 1;
  auto const state = load_all();
  ExportOptions const other_keys{.keys = key_selection(odd ? "lm_head|model.visual" : "lm_head")};
  ExportOptions const other_sizes{.keys = key_selection(".*", "lm_head"),
                                  .max_file_bytes = odd ? 1'000'000U : 400'000U};
  for (auto const& options : {other_keys, other_sizes}) {
    constexpr auto kProblem =
        "rank 1: would write other files than rank 0, or write them otherwise; options must be the same";
    expect_refused<UsageError>([&] { to_hf(state, path("never"), world(), options); }, 1, kProblem);
    expect_refused<UsageError>([&] { to_hf(*source(), path("never"), world(), options); }, 1, kProblem);
  }
}

// Only who has shards compares the copies in them.
TEST_F(UnlikeRanks, OfWhichOneHasShardsOfTheSameFilesAreToldSo) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  save_shards(load_all(), path("shards"), world());
  auto const mesh = make_mesh(world().size());
  auto const mine = open_checkpoint(path(world().rank() == 1 ? "shards" : "checkpoint"));
  EXPECT_EQ(mine->fingerprint, source()->fingerprint);
  auto const report = verify(load(mine, mesh, mesh.coordinate(world().rank())), world());
  ASSERT_EQ(report.mismatches.size(), 1U);
  EXPECT_THAT(report.mismatches.front().what,
              AllOf(HasSubstr("rank 1: its"), HasSubstr("another checkpoint or storage")));
}

// Only who knows a reference compares with it. Each opens alone: its own copy, or one that got a manifest meanwhile.
TEST_F(UnlikeRanks, OfWhichOneKnowsAManifestAreToldSo) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  write_manifest_of(checkpoint(), path("m.json"), world());
  auto const knows = world().rank() == 1;
  auto const mine = open_checkpoint(checkpoint(), {.manifest = knows ? path("m.json") : ""});
  auto const mesh = make_mesh(world().size());
  auto const coordinate = mesh.coordinate(world().rank());
  expect_refused<UsageError>([&] { (void)verify(*mine, world()); }, 1, "digests of its manifest");
  expect_refused<UsageError>([&] { (void)verify(*source(), world(), {.against = mine.get()}); }, 1, "its options");
  expect_refused<UsageError>([&] { to_hf(*mine, path("never"), world()); }, 1, "digests of its manifest");
  expect_unlike(load(mine, mesh, coordinate), 1, "other references (digests of its manifest)");
  auto const unverified = load(mine, mesh, coordinate, {.verify = VerifyLevel::off});
  expect_no_save<UsageError>(unverified, 1, "digests of its manifest");
}

TEST_F(UnlikeRanks, OfWhichOneCopiesFromACheckpointWithAManifestAreRefused) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  on_every_rank(world(), [] {
    if (world().rank() == 0) write_fp8_checkpoint(path("fp8"));
  });
  write_manifest_of(path("fp8"), path("fp8.json"), world());
  auto const state = load(open_checkpoint(path("fp8"), world()), make_mesh(world().size()), world());
  ExportOptions options{.layout = ExportLayout::source, .call = {}};
  options.source = open_checkpoint(path("fp8"), {.manifest = world().rank() == 1 ? path("fp8.json") : ""});
  expect_refused<UsageError>([&] { to_hf(state, path("never"), world(), options); }, 1,
                             "would copy from another checkpoint than rank 0, or knows other digests of it");
}

TEST_F(UnlikeRanks, ThatTogetherHoldAnExpertNowhereSaveNothing) {
  auto state = load_all();
  auto& tensor = state.tensors.at(kDownFqn);
  if (world().rank() == 0) {  // drops its last expert
    tensor.data.bytes -= tensor.data.bytes / tensor.local_shape[0];
    --tensor.local_shape[0];
  }
  auto const lost = std::to_string((7 + world().size() - 1) / world().size() - 1);  // rule 9
  expect_no_save<VerifyError>(
      state, 0, "expert " + lost + " of model.language_model.layers.1.mlp.experts.down_proj: held by no rank");
}

TEST_F(UnlikeRanks, OfWhichOneHasNoSourceAreRefused) {
  auto state = load_all();
  auto const last = world().size() - 1;
  if (world().rank() == last) state.source.reset();
  expect_no_save<UsageError>(state, last, "no source");
  expect_refused<UsageError>([&] { (void)verify(state, world()); }, last, "no source");
}

}  // namespace
}  // namespace rankslice::test
