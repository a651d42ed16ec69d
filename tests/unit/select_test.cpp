#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/hand_model.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
namespace fs = std::filesystem;

/// What a function throws.
std::string refusal(std::function<void()> const& call) {
  try {
    call();
    return "accepted";
  } catch (Error const& error) {
    return error.what();
  }
}

std::map<std::string, Bytes> bytes_by_name(std::map<std::string, test::RawTensor> const& tensors) {
  std::map<std::string, Bytes> bytes;
  for (auto const& [name, tensor] : tensors) bytes[name] = tensor.bytes;
  return bytes;
}

class Selection : public testing::Test {
 protected:
  Selection() {
    test::write_small_checkpoint(folder());
    checkpoint_ = open_checkpoint(folder());
  }

  [[nodiscard]] std::string folder() const { return dir_.file("source"); }
  [[nodiscard]] std::string path(std::string const& name) const { return dir_.file(name); }

  /// The tensors of the source whose names `keys` takes.
  [[nodiscard]] std::map<std::string, Bytes> expected() const {
    auto all = bytes_by_name(test::read_raw_tensors(folder()));
    std::erase_if(all, [&](auto const& tensor) { return !keys_(tensor.first); });
    return all;
  }

  test::TempDir dir_;
  std::shared_ptr<Checkpoint const> checkpoint_;
  KeySelection keys_ = key_selection(R"(model\.language_model\.layers\.[12]\.|lm_head)", R"(.*norm)");
  std::unique_ptr<Communicator> world_ = make_solo_communicator();
};

TEST_F(Selection, OfEverythingIsTheCheckpointItself) {
  EXPECT_EQ(select_tensors(checkpoint_, {}), checkpoint_);
  EXPECT_EQ(select_tensors(checkpoint_, key_selection(".")), checkpoint_);
}

TEST_F(Selection, OfNothingIsRefused) {
  EXPECT_THAT(refusal([&] { (void)select_tensors(checkpoint_, key_selection("absent")); }), HasSubstr("takes none of"));
}

TEST_F(Selection, HasAFreshHeaderWithTheSelectedTensorsAndAllSideFiles) {
  auto const selected = select_tensors(checkpoint_, keys_);
  EXPECT_EQ(selected->hf.headers, HeaderOrigin::selection);
  ASSERT_EQ(selected->hf.files.size(), 1U);
  EXPECT_EQ(selected->hf.files[0].name, "model.safetensors");
  EXPECT_EQ(selected->hf.index_name, "");
  EXPECT_EQ(selected->hf.side_files.size(), checkpoint_->hf.side_files.size());
  EXPECT_EQ(selected->hf.config, checkpoint_->hf.config);
  EXPECT_NE(selected->fingerprint, checkpoint_->fingerprint);
  EXPECT_EQ(selected->source_fingerprint, checkpoint_->fingerprint);

  std::vector<std::string> names, keys;
  for (auto const& tensor : selected->catalog.tensors) names.push_back(tensor.name);
  for (auto const& tensor : selected->model.tensors) keys.push_back(tensor.key);
  EXPECT_EQ(keys, names) << "in the order of the fresh catalog";
  std::vector<std::string> wanted;
  for (auto const& [name, bytes] : expected()) wanted.push_back(name);
  EXPECT_THAT(names, testing::UnorderedElementsAreArray(wanted));
}

TEST_F(Selection, NumbersOfTensorsAndParametersLeadToEachOther) {
  auto const model = select_tensors(checkpoint_, keys_)->model;
  for (std::uint32_t i = 0; i < model.tensors.size(); ++i) {
    EXPECT_THAT(model.parameters[model.tensors[i].parameter].tensors, Contains(i));
  }
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    for (auto const tensor : model.parameters[i].tensors) EXPECT_EQ(model.tensors[tensor].parameter, i);
  }
}

TEST_F(Selection, LoadsAndExportsWhatItHasAndNoMore) {
  auto const state = load(checkpoint_, make_mesh(1), *world_, {.keys = keys_});
  EXPECT_TRUE(verify(state, *world_).ok());
  auto const report = to_hf(state, path("out"), *world_);
  EXPECT_EQ(report.headers, HeaderOrigin::selection);
  EXPECT_TRUE(bytes_by_name(test::read_raw_tensors(path("out"))) == expected());
  for (auto const& side : checkpoint_->hf.side_files) {
    EXPECT_EQ(test::file_bytes(path("out/" + side.name)), test::file_bytes(side.path)) << side.name;
  }
}

TEST_F(Selection, BeforeLoadingOrWhileExportingIsTheSame) {
  to_hf(*select_tensors(checkpoint_, keys_), path("before"), *world_);
  to_hf(*checkpoint_, path("while"), *world_, {.keys = keys_});
  to_hf(load(checkpoint_, make_mesh(1), *world_), path("of_state"), *world_, {.keys = keys_});
  auto const first = test::file_bytes(path("before/model.safetensors"));
  EXPECT_TRUE(test::file_bytes(path("while/model.safetensors")) == first);
  EXPECT_TRUE(test::file_bytes(path("of_state/model.safetensors")) == first);
}

TEST_F(Selection, FillsFilesUpToTheGivenSize) {
  auto const report = to_hf(*checkpoint_, path("out"), *world_, {.keys = keys_, .max_file_bytes = 4096});
  EXPECT_GT(report.files, 1U);
  EXPECT_TRUE(fs::exists(path("out/model.safetensors.index.json")));
  EXPECT_TRUE(bytes_by_name(test::read_raw_tensors(path("out"))) == expected());
}

TEST_F(Selection, OfAWholeExportChangesNothing) {
  auto const report = to_hf(*checkpoint_, path("out"), *world_, {.keys = key_selection(".")});
  EXPECT_EQ(report.headers, HeaderOrigin::source);
  for (auto const& entry : fs::directory_iterator(folder())) {
    auto const name = entry.path().filename().string();
    EXPECT_TRUE(test::file_bytes(path("out/" + name)) == test::file_bytes(entry.path())) << name;
  }
}

TEST_F(Selection, SavedAsShardsOpensAgainAndExports) {
  auto const mesh = make_mesh(2);
  for (int rank = 0; rank < 2; ++rank) {
    save_shard(load(checkpoint_, mesh, mesh.coordinate(rank), {.keys = keys_}), path("shards"));
  }
  auto const shards = open_checkpoint(path("shards"));
  EXPECT_EQ(shards->hf.headers, HeaderOrigin::selection);
  EXPECT_EQ(shards->fingerprint, select_tensors(checkpoint_, keys_)->fingerprint);
  to_hf(*shards, path("out"), *world_);
  EXPECT_TRUE(bytes_by_name(test::read_raw_tensors(path("out"))) == expected());

  auto const narrower = select_tensors(shards, key_selection("lm_head"));
  EXPECT_EQ(narrower->model.tensors.size(), 1U);
  EXPECT_TRUE(verify(load(narrower, make_mesh(1), *world_), *world_).ok());
}

TEST_F(Selection, OfWhatIsThereStillMissesWhatTheSelectionHas) {
  auto state = load(checkpoint_, make_mesh(1), *world_, {.keys = keys_});
  state.tensors.erase("lm_head.weight");
  EXPECT_THAT(refusal([&] { to_hf(state, path("out"), *world_); }), HasSubstr("lm_head.weight"));
}

TEST_F(Selection, ASideFileWithTheNameOfAFreshFileIsRefused) {
  auto odd = *checkpoint_;
  odd.hf.side_files.push_back({.name = "model.safetensors", .path = {}, .checksum = {}});
  EXPECT_THAT(refusal([&] { (void)select_tensors(std::make_shared<Checkpoint const>(odd), keys_); }),
              AllOf(HasSubstr(folder()), HasSubstr("'model.safetensors'")));
}

// ---- split experts ----

/// A checkpoint on disk of two split experts and two dense tensors, put together by hand.
class SplitExperts : public testing::Test {
 protected:
  static constexpr std::uint64_t kExperts = 2, kHidden = 6, kIntermediate = 4;

  SplitExperts() {
    auto checkpoint = std::make_shared<Checkpoint>();
    checkpoint->path = checkpoint->source = dir_.file("source");
    checkpoint->family = "qwen3_5_moe";
    checkpoint->model = test::split_model(kExperts, kHidden, kIntermediate);
    checkpoint->catalog = test::catalog_of(checkpoint->model);
    auto& file = checkpoint->catalog.files.front();
    file.path = dir_.file("bytes");
    bytes_ = test::random_bytes(file.size, 7);
    test::write_file(file.path, bytes_);
    checkpoint->storage.files = checkpoint->catalog.files;
    auto const& model = checkpoint->model;
    for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
      for (auto const tensor : model.parameters[i].tensors) {
        auto slice = model.parameters[i].whole();
        if (model.parameters[i].stacked_experts) slice.part = model.tensors[tensor].experts;
        checkpoint->storage.pieces.push_back({i, tensor, slice, checkpoint->catalog.tensors[tensor].extent});
      }
    }
    checkpoint_ = std::move(checkpoint);
  }

  [[nodiscard]] std::map<std::string, Bytes> bytes_without(std::string const& excluded) const {
    std::map<std::string, Bytes> tensors;
    for (auto const& tensor : checkpoint_->catalog.tensors) {
      if (tensor.name.starts_with(excluded)) continue;
      auto const at = [&](std::uint64_t byte) { return bytes_.begin() + std::ptrdiff_t(byte); };
      tensors[tensor.name] = Bytes(at(tensor.extent.bytes.begin), at(tensor.extent.bytes.end));
    }
    return tensors;
  }

  test::TempDir dir_;
  Bytes bytes_;
  std::shared_ptr<Checkpoint const> checkpoint_;
  std::unique_ptr<Communicator> world_ = make_solo_communicator();
};

TEST_F(SplitExperts, OfWhichALoadTakesSomeAreRefused) {
  auto const keys = key_selection("", R"(mtp\.layers\.0\.mlp\.experts\.1\.up_proj)");
  EXPECT_THAT(refusal([&] { (void)select_tensors(checkpoint_, keys); }),
              AllOf(HasSubstr("experts.1.up_proj.weight"), HasSubstr("leaves out 1")));
}

TEST_F(SplitExperts, Rule25_EachEmittedKeyIsLeftOutForItself) {
  for (std::string const excluded : {"mtp.layers.0.mlp.experts.1.up_proj", "mtp.layers.0.mlp.experts.0.gate_proj",
                                     "mtp.layers.0.mlp.experts.1", "mtp.layers.0.mlp.experts.", "mtp.norm", "mtp."}) {
    auto const out = dir_.file("out_" + excluded);
    to_hf(*checkpoint_, out, *world_, {.keys = key_selection("", excluded)});
    EXPECT_TRUE(bytes_by_name(test::read_raw_tensors(out)) == bytes_without(excluded)) << excluded;
    to_hf(load(checkpoint_, make_mesh(1), *world_), out, *world_,
          {.overwrite = true, .keys = key_selection("", excluded)});
    EXPECT_TRUE(bytes_by_name(test::read_raw_tensors(out)) == bytes_without(excluded)) << excluded << " of a state";
  }
}

TEST_F(SplitExperts, AreSelectedWhole) {
  auto const selected = select_tensors(checkpoint_, key_selection(R"(mtp\.layers)"));
  EXPECT_EQ(selected->model.parameters.size(), 2U);
  EXPECT_EQ(selected->model.tensors.size(), 3 * kExperts);
  auto const state = load(selected, make_mesh(1), *world_);
  EXPECT_TRUE(verify(state, *world_).ok());
  to_hf(state, dir_.file("out"), *world_);
  auto expected = bytes_without("nothing");
  std::erase_if(expected, [](auto const& tensor) { return !tensor.first.starts_with("mtp.layers"); });
  EXPECT_TRUE(bytes_by_name(test::read_raw_tensors(dir_.file("out"))) == expected);
}

}  // namespace
}  // namespace rankslice
