// `VerifyLevel::reread`: who reads which bytes again, what is found, and what ranks that disagree are told.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "plan/plan.hpp"
#include "support/job_fixture.hpp"
#include "support/raw_checkpoint.hpp"

namespace rankslice::test {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr auto kDown = "model.language_model.layers.1.mlp.experts.down_proj";

class Rereading : public JobTest {
 protected:
  static std::shared_ptr<Checkpoint const> source() { return open_checkpoint(checkpoint(), world()); }
  static StateDict loaded(Mesh const& mesh) { return load(source(), mesh, world(), {.verify = VerifyLevel::reread}); }
  static VerifyReport reread(StateDict const& state) { return verify(state, world(), {.level = VerifyLevel::reread}); }
  static std::uint64_t planned_bytes(Mesh const& mesh) {
    auto const from = source();
    std::uint64_t bytes = 0;
    for (auto const& rank : plan_all_ranks(from->model, from->storage.form, mesh)) bytes += rank.read;
    return bytes;
  }
};

TEST_F(Rereading, ReadsWhatAllRanksReadOnceMoreOnEveryMesh) {
  auto const ranks = world().size();
  for (int ep_shard = 1; ep_shard <= ranks; ++ep_shard) {
    for (int ep = 1; ep * ep_shard <= ranks; ++ep) {
      if (ranks % (ep * ep_shard) != 0 || 32 % ep_shard != 0) continue;
      auto const mesh = make_mesh(ranks, ep, ep_shard);
      auto const report = reread(loaded(mesh));
      EXPECT_TRUE(report.ok());
      EXPECT_EQ(report.reference, "reread");
      ASSERT_TRUE(report.reread);
      EXPECT_EQ(report.reread->bytes, planned_bytes(mesh));
      EXPECT_EQ(report.reread->another_rank, ranks > 1);
      EXPECT_FALSE(report.reread->another_host);
    }
  }
}

TEST_F(Rereading, OfOneRankAloneReadsItsOwnBytesAgain) {
  Mesh const mesh{.ep_replicate = 1, .ep_shard = 1, .ep = 3};
  auto const state = load(source(), mesh, {.ep = 1});
  auto const report = verify(state, {.level = VerifyLevel::reread});
  EXPECT_TRUE(report.ok());
  ASSERT_TRUE(report.reread);
  EXPECT_FALSE(report.reread->another_rank);
  EXPECT_EQ(report.reread->bytes, plan_all_ranks(source()->model, Form::hf, mesh)[1].read);
}

// The file is another one than was read, and looks the same: a cache that gave old bytes, or a disk that lies.
TEST_F(Rereading, OfAFileThatReadsDifferentlyNowNamesBothReaders) {
  if (world().rank() == 0) std::filesystem::copy(checkpoint(), path("copy"));
  on_every_rank(world(), [] {});
  auto const copy = open_checkpoint(path("copy"), world());
  auto const state = load(copy, make_mesh(world().size()), world());
  on_every_rank(world(), [] {
    if (world().rank() != 0) return;
    auto const tensor = read_raw_tensors(path("copy")).at(kDown);
    auto const modified = std::filesystem::last_write_time(tensor.file);
    flip_byte(tensor.file, tensor.offset);
    std::filesystem::last_write_time(tensor.file, modified);
  });
  EXPECT_TRUE(verify(state, world()).ok());
  auto const report = reread(state);
  ASSERT_EQ(report.mismatches.size(), 1U);
  auto const& found = report.mismatches.front();
  EXPECT_EQ(found.tensor, kDown);
  EXPECT_EQ(found.expert, 0);
  EXPECT_EQ(found.rank, 0);
  EXPECT_THAT(found.what, AllOf(HasSubstr("rank 0: layer 1, expert 0 of " + std::string(kDown)),
                                HasSubstr("read again by rank " + std::to_string(1 % world().size()) + " digest ")));
  on_every_rank(world(), [] {
    if (world().rank() == 0) std::filesystem::remove_all(path("copy"));
  });
}

TEST_F(Rereading, OfACheckpointAndOfAnExportReadsEveryByteOnceMore) {
  auto const from = source();
  std::uint64_t bytes = 0;
  for (auto const& tensor : from->model.tensors) bytes += byte_size(tensor.dtype, tensor.shape);
  auto const report = verify(*from, world(), {.level = VerifyLevel::reread});
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.reread.value().bytes, bytes);
  auto const exported = to_hf(*from, path("exported"), world(), {}, VerifyLevel::reread);
  EXPECT_EQ(exported.reread.value().bytes, bytes);
}

template <typename Call>
void expect_refused(Call const& call, int rank, std::string const& message) {
  try {
    call();
    ADD_FAILURE() << "accepted";
  } catch (UsageError const& error) {
    EXPECT_EQ(error.rank, rank);
    EXPECT_THAT(error.what(), HasSubstr(message));
  }
}

// They would take different steps, and wait for one another.
TEST_F(Rereading, RanksThatWantDifferentLevelsAreRefusedByEveryCall) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto const from = source();
  auto const mesh = make_mesh(world().size());
  auto const state = load(from, mesh, world());
  constexpr std::array kLevels{VerifyLevel::off, VerifyLevel::coverage, VerifyLevel::full, VerifyLevel::reread};
  for (auto const of_rank_1 : kLevels) {
    for (auto const of_others : kLevels) {
      if (of_rank_1 == of_others) continue;
      auto const level = world().rank() == 1 ? of_rank_1 : of_others;
      auto const message =
          "rank 1: its options are not those of rank 0, as they must be: verify level " + std::string(name(of_rank_1));
      expect_refused([&] { (void)load(from, mesh, world(), {.verify = level}); }, 1, message);
      expect_refused([&] { (void)verify(state, world(), {.level = level}); }, 1, message);
      expect_refused([&] { (void)verify(*from, world(), {.level = level}); }, 1, message);
      expect_refused([&] { (void)to_hf(*from, path("never"), world(), {}, level); }, 1, message);
    }
  }
  auto const* const against = world().rank() == 1 ? from.get() : nullptr;
  expect_refused([&] { (void)verify(state, world(), {.against = against}); }, 1, "verify level full, against ");
  EXPECT_FALSE(std::filesystem::exists(path("never")));
}

TEST_F(Rereading, RanksThatOpenedDifferentCheckpointsAreRefused) {
  if (world().size() == 1) GTEST_SKIP() << "needs two ranks";
  auto const keys = key_selection(world().rank() == 1 ? "lm_head" : "");
  auto const mine = select_tensors(open_checkpoint(checkpoint()), keys);
  for (auto const level : {VerifyLevel::coverage, VerifyLevel::full}) {
    expect_refused([&] { (void)verify(*mine, world(), {.level = level}); }, 1, "has another checkpoint than rank 0");
  }
}

}  // namespace
}  // namespace rankslice::test
