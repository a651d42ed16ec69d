// Plans of meshes with `ep_shard`: what each rank holds by rules 9, 13 and 14, and what that costs to read.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "plan/plan.hpp"
#include "support/hand_model.hpp"

namespace rankslice {
namespace {

constexpr std::uint64_t kHidden = 96;                  // rows of G
constexpr std::uint64_t kIntermediate = 48;            // rows of D
constexpr int kShards[] = {1, 2, 3, 4, 6, 8, 16, 48};  // they divide both

/// Rule 9, from its text.
Range experts_of(std::uint64_t experts, std::uint64_t width, std::uint64_t r) {
  auto const b = experts / width;
  auto const m = experts % width;
  if (r < m) return {r * (b + 1), (r + 1) * (b + 1)};
  return {r * b + m, r * b + m + b};
}

/// Rules 9, 13 and 14: rank = (replicate·S + shard)·W + ep, experts by ep, rows [shard·c, (shard + 1)·c).
Slice slice_of(Parameter const& parameter, Mesh const& mesh, int rank) {
  if (!parameter.stacked_experts) return {.part = {0, element_count(parameter.shape)}, .rows = {0, 1}};
  auto const ep = static_cast<std::uint64_t>(rank % mesh.ep);
  auto const shard = static_cast<std::uint64_t>(rank / mesh.ep % mesh.ep_shard);
  auto const c = parameter.shape[1] / static_cast<std::uint64_t>(mesh.ep_shard);
  return {.part = experts_of(parameter.shape[0], static_cast<std::uint64_t>(mesh.ep), ep),
          .rows = {shard * c, (shard + 1) * c}};
}

/// Meshes of 1 to 4096 ranks, S and W of all kinds, one to three replicas.
std::vector<Mesh> meshes() {
  std::vector<Mesh> all;
  for (auto const shards : kShards) {
    for (auto const ep : {1, 2, 3, 4, 5, 7, 8, 16, 60, 64, 85, 128, 512, 2048, 4096}) {
      for (int replicas = 1; replicas <= 3; ++replicas) {
        Mesh const mesh{.ep_replicate = replicas, .ep_shard = shards, .ep = ep};
        if (mesh.ranks() <= 4096) all.push_back(mesh);
      }
    }
  }
  return all;
}

/// Calls `check(model, mesh)` for every mesh and numbers of experts below, at and above the number of ranks.
template <typename Check>
void for_every_mesh(Check const& check) {
  for (auto const experts : {1U, 5U, 8U, 60U, 128U}) {
    auto const model = test::split_model(experts, kHidden, kIntermediate);
    for (auto const& mesh : meshes()) {
      SCOPED_TRACE(testing::Message() << experts << " experts, " << mesh.ep_replicate << " x " << mesh.ep_shard << " x "
                                      << mesh.ep);
      check(model, mesh);
      if (testing::Test::HasFailure()) return;
    }
  }
}

/// How often each row of each expert of a parameter is in one of the slices added.
class Grid {
 public:
  Grid(std::uint64_t experts, std::uint64_t rows) : rows_(rows), counts_(experts * rows) {}

  void add(Slice const& slice) {
    for (auto e = slice.part.begin; e < slice.part.end; ++e) {
      for (auto row = slice.rows.begin; row < slice.rows.end; ++row) ++counts_.at(e * rows_ + row);
    }
  }
  [[nodiscard]] bool has_each(int times) const {
    return std::ranges::all_of(counts_, [times](int count) { return count == times; });
  }

 private:
  std::uint64_t rows_;
  std::vector<int> counts_;
};

/// One for each parameter; without cells for dense ones.
std::vector<Grid> grids_of(Model const& model) {
  std::vector<Grid> grids;
  for (auto const& parameter : model.parameters) {
    parameter.stacked_experts ? grids.emplace_back(parameter.shape[0], parameter.shape[1]) : grids.emplace_back(0, 0);
  }
  return grids;
}

struct Totals {
  std::uint64_t dense = 0, stacked = 0;
};

Totals bytes_of(Model const& model) {
  Totals bytes;
  for (auto const& parameter : model.parameters) {
    (parameter.stacked_experts ? bytes.stacked : bytes.dense) += byte_size(DType::BF16, parameter.shape);
  }
  return bytes;
}

TEST(EpShard, Rules9And13And14_EveryRankHoldsItsExpertsAndRowsAndEachReplicaTilesTheTensors) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    auto grids = grids_of(model);
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      for (auto const& [index, slice] : make_load_plan(model, Form::hf, mesh, mesh.coordinate(rank)).slices) {
        auto const& parameter = model.parameters[index];
        if (slice != slice_of(parameter, mesh, rank)) FAIL() << "rank " << rank << ": " << to_string(slice);
        if (parameter.stacked_experts) grids[index].add(slice);
      }
    }
    for (auto const& grid : grids) EXPECT_TRUE(grid.has_each(mesh.ep_replicate));
  });
}

TEST(EpShard, WantedBytesAreTheCheckpointOnceForEachReplicaAndReadOnesAtMostSFold) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    auto const whole = bytes_of(model);
    auto const ranks = static_cast<std::uint64_t>(mesh.ranks());
    auto const replicas = static_cast<std::uint64_t>(mesh.ep_replicate);
    auto const shards = static_cast<std::uint64_t>(mesh.ep_shard);
    for (auto const form : {Form::hf, Form::native}) {
      std::uint64_t wanted = 0, read = 0, owned = 0;
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        auto const plan = make_load_plan(model, form, mesh, mesh.coordinate(rank));
        if (plan.bytes_read > shards * plan.bytes_wanted) FAIL() << "rank " << rank << " reads " << plan.bytes_read;
        wanted += plan.bytes_wanted;
        read += plan.bytes_read;
        owned += plan.bytes_owned;
      }
      EXPECT_EQ(wanted, replicas * whole.stacked + ranks * whole.dense);
      EXPECT_EQ(owned, wanted);
      // The rows are short: columns of a file are read with all that is between them, slices of a store are not.
      auto const times = form == Form::hf ? shards : 1;
      EXPECT_EQ(read, replicas * times * whole.stacked + ranks * whole.dense);
    }
  });
}

TEST(EpShard, PlanAllRanksAgreesWithThePlanOfEachRank) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    for (auto const form : {Form::hf, Form::native}) {
      auto const all = plan_all_ranks(model, form, mesh);
      ASSERT_EQ(all.size(), static_cast<std::size_t>(mesh.ranks()));
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        auto const plan = make_load_plan(model, form, mesh, mesh.coordinate(rank));
        auto const& bytes = all[static_cast<std::size_t>(rank)];
        if (bytes.wanted != plan.bytes_wanted || bytes.read != plan.bytes_read || bytes.owned != plan.bytes_owned ||
            bytes.experts != plan.slices[1].slice.part.size()) {
          FAIL() << "rank " << rank;
        }
      }
    }
  });
}

TEST(EpShard, SavePlansWriteEveryRowOnceOverTheMeshAndOnlyWhereItIsHeld) {
  for_every_mesh([](Model const& model, Mesh const& mesh) {
    auto grids = grids_of(model);
    std::uint64_t dense = 0;
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      for (auto const& [index, slice] : make_save_plan(model, {.mesh = mesh}, rank)) {
        auto const& parameter = model.parameters[index];
        auto const held = slice_of(parameter, mesh, rank);
        auto const inside =
            held.part.begin <= slice.part.begin && slice.part.end <= held.part.end && held.rows == slice.rows;
        if (!inside) FAIL() << "rank " << rank << ": " << to_string(slice);
        if (parameter.stacked_experts)
          grids[index].add(slice);
        else
          dense += 2 * slice.part.size();
      }
    }
    for (auto const& grid : grids) EXPECT_TRUE(grid.has_each(1));
    EXPECT_EQ(dense, bytes_of(model).dense);
  });
}

// ---- rule 15 ----

void expect_refused(Model const& model, Mesh const& mesh, std::string const& fqn, std::string const& words) {
  auto const expect = [&](auto const& plan) {
    try {
      plan();
      ADD_FAILURE() << "no error: " << words;
    } catch (PlanError const& error) {
      EXPECT_EQ(error.what(), fqn + ": " + words);
      EXPECT_EQ(error.tensor, fqn);
    }
  };
  expect([&] { (void)make_load_plan(model, Form::hf, mesh, {}); });
  expect([&] { (void)make_load_plan(model, Form::native, mesh, mesh.coordinate(mesh.ranks() - 1)); });
  expect([&] { (void)plan_all_ranks(model, Form::hf, mesh); });
  expect([&] { (void)make_save_plan(model, {.mesh = mesh}, 0); });
}

TEST(EpShard, Rule15_RowsThatSDoesNotDivideAreRefusedInUpstreamsWords) {
  Mesh const mesh{.ep_replicate = 1, .ep_shard = 4, .ep = 1};
  std::string const decoder = "model.language_model.layers.0.mlp.experts.";
  expect_refused(test::split_model(2, 6, 4), mesh, decoder + "gate_and_up_projs",
                 "Base gate_and_up_projs dim 1 (6) is not divisible by ep_shard_size=4");
  expect_refused(test::split_model(2, 4, 6), mesh, decoder + "down_projs",
                 "Base down_projs dim 1 (6) is not divisible by ep_shard_size=4");
  Model mtp;
  test::append_split(mtp, "mtp.layers.0.mlp.experts", 2, 6, 4);
  expect_refused(mtp, mesh, "mtp.layers.0.mlp.experts.gate_and_up_projs",
                 "MTP gate_and_up_projs dim 1 (6) is not divisible by ep_shard_size=4");
  mtp = {};
  test::append_split(mtp, "mtp.layers.0.mlp.experts", 2, 4, 6);
  expect_refused(mtp, mesh, "mtp.layers.0.mlp.experts.down_projs",
                 "MTP down_projs dim 1 (6) is not divisible by ep_shard_size=4");
}

// A rank without experts would not notice; all ranks must fail alike.
TEST(EpShard, Rule15_HoldsForRanksWithoutExperts) {
  auto const model = test::split_model(2, 6, 4);
  Mesh const mesh{.ep_replicate = 1, .ep_shard = 4, .ep = 3};
  EXPECT_THROW((void)make_load_plan(model, Form::hf, mesh, {.ep_replicate = 0, .ep_shard = 0, .ep = 2}), PlanError);
}

// ---- what is read to get at a slice: idea 3 of the design ----

TEST(ReadFor, ColumnsOfAFileAreReadAloneFrom64KiBAndWithTheWholeRowsBelow) {
  struct Case {
    DType dtype;
    std::uint64_t rows;
    bool alone;
  };
  for (auto const& [dtype, rows, alone] :
       {Case{DType::BF16, 32768, true}, Case{DType::BF16, 32767, false}, Case{DType::F32, 16384, true},
        Case{DType::F32, 16383, false}, Case{DType::U8, 65536, true}, Case{DType::U8, 65535, false}}) {
    Model model;
    test::append_grouped(model, "experts", {4, 100'000, 3});
    auto& parameter = model.parameters.front();
    parameter.hf_dtype = parameter.dtype = dtype;
    Slice const wanted{.part = {1, 3}, .rows = {7, 7 + rows}};
    Slice const whole{.part = {1, 3}, .rows = {0, 100'000}};
    EXPECT_EQ(parameter.read_for(wanted, Form::hf), alone ? wanted : whole) << name(dtype) << " " << rows;
    EXPECT_EQ(parameter.read_for(wanted, Form::native), wanted) << "rows of a store are rows";
    parameter.layout = Layout::same;
    EXPECT_EQ(parameter.read_for(wanted, Form::hf), wanted) << "rows of the file, too";
  }
}

TEST(ReadFor, NothingIsReadForNothing) {
  Model model;
  test::append_grouped(model, "experts", {4, 100, 3});
  Slice const none{.part = {4, 4}, .rows = {50, 100}};
  EXPECT_EQ(model.parameters.front().read_for(none, Form::hf), none);
}

TEST(ReadFor, DenseTensorsAreReadAsTheyAreWanted) {
  Model model;
  test::append_dense(model, "dense", DType::BF16, DType::F32, {100});
  Slice const wanted{.part = {10, 20}, .rows = {0, 1}};
  EXPECT_EQ(model.parameters.front().read_for(wanted, Form::hf), wanted);
}

TEST(EpShard, PlansReadLongColumnsAloneAndShortOnesWithWhatIsBetween) {
  // G has 2 x 131072 x 16 elements, rows of 256 KiB in the file; D 2 x 8 x 131072, rows of 16 bytes; each twice.
  auto const model = test::split_model(2, 131'072, 8);
  auto const dense = 2 * 4 * 131'072U;
  auto const gate_up = 2 * 2 * 2 * 131'072 * 16U, down = gate_up / 2;
  auto const read = [&](int shards) {
    return make_load_plan(model, Form::hf, {.ep_replicate = 1, .ep_shard = shards, .ep = 1}, {}).bytes_read - dense;
  };
  EXPECT_EQ(read(1), gate_up + down);
  EXPECT_EQ(read(2), gate_up / 2 + down);
  EXPECT_EQ(read(4), gate_up / 4 + down) << "64 KiB of each row";
  EXPECT_EQ(read(8), gate_up + down) << "32 KiB of each row";
}

}  // namespace
}  // namespace rankslice
