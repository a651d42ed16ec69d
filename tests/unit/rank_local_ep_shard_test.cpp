// One rank's rows of its experts (rule 14), from every layout that experts are stored in, without MPI.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>

#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "hf_target.hpp"
#include "support/hand_model.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::ElementsAre;

/// Rules 9, 13 and 14 from their text: the experts and rows of a rank of a mesh, `ep` fastest.
Slice slice_of(Shape const& native, Mesh const& mesh, int rank) {
  auto const width = static_cast<std::uint64_t>(mesh.ep);
  auto const r = static_cast<std::uint64_t>(rank) % width;
  auto const shard = static_cast<std::uint64_t>(rank / mesh.ep % mesh.ep_shard);
  auto const b = native[0] / width, m = native[0] % width;
  auto const c = native[1] / static_cast<std::uint64_t>(mesh.ep_shard);
  auto const begin = r < m ? r * (b + 1) : r * b + m;
  return {.part = {begin, begin + b + (r < m ? 1 : 0)}, .rows = {shard * c, (shard + 1) * c}};
}

/// The experts and rows of a slice of a native BF16 tensor, one row after the other.
Bytes rows_of(Bytes const& native, Shape const& shape, Slice const& slice) {
  Bytes rows;
  auto const row_bytes = shape[2] * 2;
  for (auto e = slice.part.begin; e < slice.part.end; ++e) {
    for (auto row = slice.rows.begin; row < slice.rows.end; ++row) {
      auto const begin = native.begin() + std::ptrdiff_t((e * shape[1] + row) * row_bytes);
      rows.insert(rows.end(), begin, begin + std::ptrdiff_t(row_bytes));
    }
  }
  return rows;
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

/// A checkpoint of a hand-made model: random bytes in one file on disk.
class HandCheckpoint {
 public:
  explicit HandCheckpoint(Model const& model) {
    auto checkpoint = std::make_shared<Checkpoint>();
    checkpoint->path = checkpoint->source = dir_.path().string();
    checkpoint->model = model;
    checkpoint->catalog = test::catalog_of(model, 13);
    auto& file = checkpoint->catalog.files.front();
    file.path = dir_.file("model.safetensors");
    bytes_ = test::random_bytes(file.size, 1);
    test::write_file(file.path, bytes_);
    checkpoint->storage = {.form = Form::hf,
                           .files = checkpoint->catalog.files,
                           .pieces = hf_pieces(checkpoint->catalog, checkpoint->model)};
    checkpoint_ = std::move(checkpoint);
  }

  [[nodiscard]] std::shared_ptr<Checkpoint const> const& checkpoint() const { return checkpoint_; }
  [[nodiscard]] Model const& model() const { return checkpoint_->model; }

  [[nodiscard]] Bytes tensor(std::uint32_t index) const {
    auto const& extent = checkpoint_->catalog.tensors[index].extent.bytes;
    return {bytes_.begin() + std::ptrdiff_t(extent.begin), bytes_.begin() + std::ptrdiff_t(extent.end)};
  }

  /// The native form of a whole stacked parameter, element by element from its tensors [experts, rows, columns].
  [[nodiscard]] Bytes native(Parameter const& parameter) const {
    auto const& shape = parameter.shape;
    Bytes native(shape[0] * shape[1] * shape[2] * 2);
    for (auto const index : parameter.tensors) {
      auto const& of = model().tensors[index];
      auto const stored = tensor(index);
      auto const rows = of.shape[of.shape.size() - 2], columns = of.shape.back();
      for (std::uint64_t i = 0; i < stored.size() / 2; ++i) {
        auto r = i / columns % rows, c = i % columns;
        if (parameter.layout == Layout::swapped) std::swap(r, c);
        auto const e = of.experts.begin + i / columns / rows;
        std::memcpy(&native[((e * shape[1] + r) * shape[2] + of.columns.begin + c) * 2], &stored[i * 2], 2);
      }
    }
    return native;
  }

 private:
  test::TempDir dir_;
  Bytes bytes_;
  std::shared_ptr<Checkpoint const> checkpoint_;
};

/// Grouped and split experts with swapped axes, grouped ones with the native axes (rule 2), dense tensors.
Model every_layout(std::uint64_t experts, std::uint64_t hidden, std::uint64_t intermediate) {
  auto model = test::split_model(experts, hidden, intermediate);
  test::append_grouped(model, "same.gate_up_proj", {experts, hidden, 2 * intermediate}, Layout::same);
  test::append_grouped(model, "same.down_proj", {experts, intermediate, hidden}, Layout::same);
  test::append_dense(model, "linear_attn.dt_bias", DType::BF16, DType::F32, {5});
  return model;
}

std::vector<Mesh> meshes() {
  return {{1, 1, 1}, {1, 2, 1}, {1, 4, 1}, {1, 1, 3}, {1, 2, 2}, {1, 2, 3}, {2, 2, 2}, {2, 1, 2}, {1, 2, 9}, {3, 4, 2}};
}

using Check = std::function<void(StateDict const& state, Mesh const& mesh, int rank)>;

void for_every_rank(std::shared_ptr<Checkpoint const> const& source, Check const& check) {
  for (auto const& mesh : meshes()) {
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << " of " << mesh.ep_replicate << " x " << mesh.ep_shard
                                      << " x " << mesh.ep);
      check(load(source, mesh, mesh.coordinate(rank)), mesh, rank);
    }
  }
}

class RankLocalEpShard : public testing::Test {
 protected:
  HandCheckpoint hand_{every_layout(7, 12, 4)};
};

TEST_F(RankLocalEpShard, Rules14And21And35_EveryTensorIsItsExpertsAndRowsOfTheFile) {
  std::map<std::string, Bytes> native;
  for (auto const& parameter : hand_.model().parameters) {
    native[parameter.fqn] = parameter.stacked_experts ? hand_.native(parameter) : hand_.tensor(parameter.tensors[0]);
    if (parameter.converted()) native[parameter.fqn] = widened(native[parameter.fqn]);
  }
  for_every_rank(hand_.checkpoint(), [&](StateDict const& state, Mesh const& mesh, int rank) {
    ASSERT_EQ(state.tensors.size(), native.size());
    for (auto const& [fqn, tensor] : state.tensors) {
      auto const& global = tensor.parameter.shape;
      auto expected = native.at(fqn);
      if (tensor.parameter.stacked_experts) expected = rows_of(expected, global, slice_of(global, mesh, rank));
      EXPECT_TRUE(held(tensor) == expected) << fqn;
    }
  });
}

TEST_F(RankLocalEpShard, Rules12And16_TensorsCarryGlobalShapesOffsetsAndPlacements) {
  Placement const replicate{};
  Placement const experts_axis{.kind = Placement::Kind::shard, .dim = 0};
  Placement const rows_axis{.kind = Placement::Kind::shard, .dim = 1};
  for_every_rank(hand_.checkpoint(), [&](StateDict const& state, Mesh const& mesh, int rank) {
    for (auto const& [fqn, tensor] : state.tensors) {
      auto const& global = std::ranges::find(hand_.model().parameters, fqn, &Parameter::fqn)->shape;
      EXPECT_EQ(tensor.parameter.shape, global);
      if (!tensor.parameter.stacked_experts) {
        EXPECT_EQ(tensor.local_shape, global) << fqn;
        EXPECT_EQ(tensor.offsets, Shape(global.size(), 0)) << fqn;
        EXPECT_THAT(tensor.placements, ElementsAre(replicate, replicate, replicate)) << fqn;
        continue;
      }
      auto const slice = slice_of(global, mesh, rank);
      EXPECT_EQ(tensor.local_shape, (Shape{slice.part.size(), slice.rows.size(), global[2]})) << fqn;
      EXPECT_EQ(tensor.offsets, (Shape{slice.part.begin, slice.rows.begin, 0})) << fqn;
      EXPECT_EQ(tensor.slice(), slice) << fqn;
      auto const only_ep = mesh.ep_replicate == 1 && mesh.ep_shard == 1;
      EXPECT_THAT(tensor.placements, ElementsAre(replicate, only_ep ? replicate : rows_axis, experts_axis)) << fqn;
    }
  });
}

TEST_F(RankLocalEpShard, EveryRankProvesWhatItHolds) {
  for_every_rank(hand_.checkpoint(), [](StateDict const& state, Mesh const&, int) { EXPECT_TRUE(verify(state).ok()); });
}

TEST_F(RankLocalEpShard, AChangedElementOfTheRowsIsNamed) {
  auto const mesh = make_mesh(4, 2, 2);
  for (std::string const fqn : {"model.language_model.layers.0.mlp.experts.gate_and_up_projs",
                                "mtp.layers.0.mlp.experts.gate_and_up_projs", "same.gate_up_projs"}) {
    auto const state = load(hand_.checkpoint(), mesh, mesh.coordinate(3));  // the experts [4, 7), the rows [6, 12)
    state.tensors.at(fqn).data.span().back() ^= std::byte{1};
    auto const report = verify(state);
    ASSERT_EQ(report.mismatches.size(), 1U) << fqn;
    EXPECT_EQ(report.mismatches[0].expert, 6) << fqn;
    EXPECT_EQ(report.mismatches[0].rank, 3) << fqn;
  }
}

// `digest.md`: any parts of a tensor add up, columns of stored rows as well.
TEST_F(RankLocalEpShard, WhatTheRanksOfAReplicaDigestAddsUpToTheTensors) {
  auto const& model = hand_.model();
  for (auto const& mesh : meshes()) {
    DigestTable sums(model.tensors);
    for (int rank = 0; rank < mesh.ranks() / mesh.ep_replicate; ++rank) {
      auto const state = load(hand_.checkpoint(), mesh, mesh.coordinate(rank));
      auto const mine = state.read.source.values();
      std::ranges::transform(sums.values(), mine, sums.values().begin(), std::plus<>());
    }
    for (std::uint32_t i = 0; i < model.tensors.size(); ++i) {
      auto const& tensor = model.tensors[i];
      if (!model.parameters[tensor.parameter].stacked_experts) continue;
      auto const found = sums.of(i);
      EXPECT_EQ(std::vector<std::uint64_t>(found.begin(), found.end()),
                test::naive_digest(2, tensor.shape, hand_.tensor(i)))
          << tensor.key << " over " << mesh.ep_shard << " x " << mesh.ep;
    }
  }
}

// ---- what is read ----

std::uint64_t bytes_read(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, int rank) {
  std::uint64_t done = 0, total = 0;
  auto const count = [&](Progress const& progress) {
    done = progress.done;
    total = progress.total;
  };
  (void)load(source, mesh, mesh.coordinate(rank), {.call = {.progress = count}});
  EXPECT_EQ(done, total);
  return done;
}

TEST_F(RankLocalEpShard, ShortColumnsOfTheFileAreReadWithTheirWholeRowsAndRowsAlone) {
  constexpr std::uint64_t matrix = 12 * 4 * 2, dense = (3 * 12 + 12 + 5) * 2;  // bytes of a projection of an expert
  auto const mesh = make_mesh(6, 3, 2);
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    std::uint64_t const experts = rank % 3 == 0 ? 3 : 2;
    auto const swapped = 2 * 3 * matrix;  // grouped and split, of gate, up and down: all rows
    auto const same = 3 * matrix / 2;     // half of the rows
    EXPECT_EQ(bytes_read(hand_.checkpoint(), mesh, rank), experts * (swapped + same) + dense) << rank;
  }
}

TEST(RankLocalEpShardStrides, LongColumnsOfTheFileAreReadAlone) {
  constexpr std::uint64_t hidden = 65'536, gate_up = 2 * hidden * 2, down = hidden * 2;  // bytes of an expert, I = 1
  HandCheckpoint const hand([] {
    Model model;
    test::append_grouped(model, "gate_up_proj", {2, hidden, 2});
    test::append_grouped(model, "long.down_proj", {2, hidden, 1});
    return model;
  }());
  for (auto const shards : {1, 2, 4}) {
    auto const mesh = make_mesh(shards, 1, shards);
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      auto const state = load(hand.checkpoint(), mesh, mesh.coordinate(rank));
      for (auto const& [fqn, tensor] : state.tensors) {
        auto const& shape = tensor.parameter.shape;
        EXPECT_TRUE(held(tensor) == rows_of(hand.native(tensor.parameter), shape, slice_of(shape, mesh, rank)))
            << fqn << ", rank " << rank << " of " << shards;
      }
      EXPECT_TRUE(verify(state).ok());
      // 64 KiB of each row for two ranks; 32 KiB for four would cost more to find than to read all.
      EXPECT_EQ(bytes_read(hand.checkpoint(), mesh, rank), 2 * (gate_up + down) / (shards == 2 ? 2 : 1));
    }
  }
}

// ---- shards ----

bool is_stacked(std::string const& hf_key) {
  return hf_key.ends_with("mlp.experts.gate_up_proj") || hf_key.ends_with("mlp.experts.down_proj");
}

/// The small checkpoint: 4 experts, H = 16, I = 8, grouped and swapped.
class ShardsOfEpShard : public testing::Test {
 protected:
  ShardsOfEpShard() {
    test::write_small_checkpoint(folder());
    source_ = open_checkpoint(folder());
    raw_ = test::read_raw_tensors(folder());
  }
  [[nodiscard]] std::string folder() const { return dir_.file("hf"); }

  void save(std::string const& to, Mesh const& mesh) const {
    for (int rank = 0; rank < mesh.ranks(); ++rank) save_shard(load(source_, mesh, mesh.coordinate(rank)), to);
  }
  /// What a rank should hold of a tensor of the checkpoint (rules 14, 35, 55).
  [[nodiscard]] Bytes expected(std::string const& key, Mesh const& mesh, int rank) const {
    auto const& raw = raw_.at(key);
    if (key.ends_with("dt_bias")) return widened(raw.bytes);
    if (!is_stacked(key)) return raw.bytes;
    Shape const native{raw.shape[0], raw.shape[2], raw.shape[1]};
    return rows_of(test::swap_axes(raw.bytes, raw.shape, 2), native, slice_of(native, mesh, rank));
  }

  test::TempDir dir_;
  std::shared_ptr<Checkpoint const> source_;
  std::map<std::string, test::RawTensor> raw_;
};

TEST_F(ShardsOfEpShard, HoldTheLocalTensors) {
  auto const mesh = make_mesh(4, 2, 2);
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    auto const folder = dir_.file("rank" + std::to_string(rank));
    auto const state = load(source_, mesh, mesh.coordinate(rank));
    save_shard(state, folder);
    auto const saved = test::read_raw_tensors(folder);
    ASSERT_EQ(saved.size(), state.tensors.size());
    for (auto const& [fqn, tensor] : state.tensors) {
      EXPECT_EQ(saved.at(fqn).shape, tensor.local_shape) << fqn;
      EXPECT_TRUE(saved.at(fqn).bytes == expected(source_->model.key_of(tensor.parameter), mesh, rank)) << fqn;
    }
  }
}

TEST_F(ShardsOfEpShard, AreLoadedByAnyOtherMesh) {
  for (auto const& written : {Mesh{1, 2, 2}, Mesh{1, 4, 1}, Mesh{2, 2, 3}}) {
    auto const name = dir_.file(testing::PrintToString(written.ranks()));
    save(name, written);
    auto const shards = open_checkpoint(name);
    EXPECT_EQ(shards->storage.form, Form::native);
    for (auto const& mesh : {Mesh{1, 1, 1}, Mesh{1, 1, 3}, Mesh{1, 2, 2}, Mesh{1, 4, 3}, Mesh{2, 8, 1}}) {
      for (int rank = 0; rank < mesh.ranks(); ++rank) {
        auto const state = load(shards, mesh, mesh.coordinate(rank));
        EXPECT_TRUE(verify(state).ok());
        for (auto const& [fqn, tensor] : state.tensors) {
          EXPECT_TRUE(held(tensor) == expected(source_->model.key_of(tensor.parameter), mesh, rank))
              << fqn << ", rank " << rank << " of " << mesh.ep_shard << " x " << mesh.ep << " from " << written.ep_shard
              << " x " << written.ep;
        }
      }
    }
    std::filesystem::remove_all(name);
  }
}

TEST_F(ShardsOfEpShard, GiveTheSourceBack) {
  save(dir_.file("shards"), make_mesh(8, 2, 2));
  auto const world = make_solo_communicator();
  to_hf(*open_checkpoint(dir_.file("shards")), dir_.file("back"), *world);
  for (auto const& entry : std::filesystem::directory_iterator(folder())) {
    auto const name = entry.path().filename().string();
    EXPECT_TRUE(test::file_bytes(dir_.file("back/" + name)) == test::file_bytes(entry.path().string())) << name;
  }
}

}  // namespace
}  // namespace rankslice
