#include "rankslice/checkpoint.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <functional>
#include <set>

#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "checkpoint_parts.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// ---- packing ----

/// Parts with something in every field.
CheckpointParts example_parts() {
  CheckpointParts parts;
  parts.format = CheckpointFormat::store;
  parts.path = "/data/\xff not UTF-8";
  parts.source = "/source";
  parts.family = "qwen3_5_moe";
  parts.text_only = false;
  parts.hf.files = {{.name = "a.safetensors",
                     .size = std::uint64_t{1} << 60,
                     .header = test::random_bytes(300, 1),
                     .modified_ns = -5},
                    {.name = "b.safetensors", .size = 8, .header = {}, .modified_ns = 1'700'000'000'000'000'000}};
  parts.hf.index_name = "model.safetensors.index.json";
  parts.hf.index = test::random_bytes(100, 2);
  parts.hf.config = test::random_bytes(10, 3);
  parts.hf.side_files = {{.name = "tokenizer.json", .size = 17, .path = "/s.h5", .offset = 4096, .checksum = "00ff"}};
  parts.hf.left_out = {"pytorch_model.bin", "b"};
  parts.hf_folder = "/folder";
  parts.files = {{.name = "s.h5", .path = "/s.h5", .size = 123, .modified_ns = 7}};
  parts.native = {
      {.fqn = "x.scalar", .dtype = DType::F6_E2M3, .shape = {}, .offsets = {}, .local = {}, .extent = {0, {5, 6}}},
      {.fqn = "x.experts",
       .dtype = DType::F32,
       .shape = {7, 2, 3},
       .offsets = {2, 1, 0},
       .local = {3, 1, 3},
       .extent = {.file = 9, .bytes = {UINT64_MAX - 1, UINT64_MAX}}}};
  parts.source_digests = {{.hf_key = "k", .values = {UINT64_MAX, 0, 1}}, {.hf_key = "none", .values = {}}};
  parts.stored_digests = {{.hf_key = "l", .values = {42}}};
  parts.warnings = {"odd", ""};
  return parts;
}

auto fields(HfFile const& f) { return std::tie(f.name, f.size, f.header, f.modified_ns); }
auto fields(SideFile const& f) { return std::tie(f.name, f.size, f.path, f.offset, f.checksum); }
auto fields(CatalogFile const& f) { return std::tie(f.name, f.path, f.size, f.modified_ns); }
auto fields(CheckpointParts::Native const& t) {
  return std::tie(t.fqn, t.dtype, t.shape, t.offsets, t.local, t.extent);
}
auto fields(StoreContents::RecordedDigest const& d) { return std::tie(d.hf_key, d.values); }

template <typename Item>
void expect_equal(std::vector<Item> const& found, std::vector<Item> const& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(fields(found[i]) == fields(expected[i])) << i;
}

void expect_equal(CheckpointParts const& found, CheckpointParts const& expected) {
  EXPECT_EQ(found.format, expected.format);
  EXPECT_EQ(found.path, expected.path);
  EXPECT_EQ(found.source, expected.source);
  EXPECT_EQ(found.family, expected.family);
  EXPECT_EQ(found.text_only, expected.text_only);
  expect_equal(found.hf.files, expected.hf.files);
  EXPECT_EQ(found.hf.index_name, expected.hf.index_name);
  EXPECT_EQ(found.hf.index, expected.hf.index);
  EXPECT_EQ(found.hf.config, expected.hf.config);
  expect_equal(found.hf.side_files, expected.hf.side_files);
  EXPECT_EQ(found.hf.left_out, expected.hf.left_out);
  EXPECT_EQ(found.hf_folder, expected.hf_folder);
  expect_equal(found.files, expected.files);
  expect_equal(found.native, expected.native);
  expect_equal(found.source_digests, expected.source_digests);
  expect_equal(found.stored_digests, expected.stored_digests);
  EXPECT_EQ(found.warnings, expected.warnings);
}

TEST(CheckpointParts, ArriveAsTheyWereSent) { expect_equal(unpack(pack(example_parts())), example_parts()); }

TEST(CheckpointParts, EmptyOnesArriveEmpty) { expect_equal(unpack(pack({})), CheckpointParts{}); }

// ---- the fingerprint ----

TEST(Fingerprint, ChangesWithEachThingThatItCoversAndWithNothingElse) {
  auto const base = example_parts().hf;
  std::vector<std::function<void(HfLayout&)>> const changes{
      [](HfLayout& hf) { hf.files[0].name += "x"; },
      [](HfLayout& hf) { ++hf.files[0].size; },
      [](HfLayout& hf) { hf.files[0].header[17] ^= std::byte{1}; },
      [](HfLayout& hf) { hf.files[0].header.push_back(std::byte{0}); },
      [](HfLayout& hf) { hf.files.pop_back(); },
      [](HfLayout& hf) { std::swap(hf.files[0], hf.files[1]); },
      [](HfLayout& hf) { std::swap(hf.files[0].header, hf.files[1].header); },
      [](HfLayout& hf) { hf.index_name = "index.json"; },
      [](HfLayout& hf) { hf.index.pop_back(); },
      [](HfLayout& hf) { hf.index.back() ^= std::byte{1}; }};
  std::set<std::string> seen{fingerprint(base)};
  for (auto const& change : changes) {
    auto changed = base;
    change(changed);
    EXPECT_TRUE(seen.insert(fingerprint(changed)).second) << &change - changes.data();
  }
  auto same = base;
  same.files[0].modified_ns = 99;
  same.side_files.clear();
  same.left_out.clear();
  same.config.clear();
  EXPECT_EQ(fingerprint(same), fingerprint(base));
  EXPECT_EQ(fingerprint(base).size(), 32U);
}

// ---- a Hugging Face folder ----

/// The error that opening ends with, as "code message".
std::string refusal(std::string const& path, OpenOptions const& options = {}) {
  try {
    (void)open_checkpoint(path, options);
  } catch (Error const& error) {
    return std::to_string(static_cast<int>(error.code)) + " " + error.what();
  }
  return "opened";
}

class HfCheckpoint : public testing::Test {
 protected:
  HfCheckpoint() { test::write_small_checkpoint(folder()); }
  std::string folder() const { return dir_.file("hf"); }

  test::TempDir dir_;
};

TEST_F(HfCheckpoint, PlacesEveryTensorWhereItIsInTheFile) {
  auto const checkpoint = open_checkpoint(folder());
  auto const raw = test::read_raw_tensors(folder());
  EXPECT_EQ(checkpoint->format, CheckpointFormat::huggingface);
  EXPECT_EQ(checkpoint->family, "qwen3_5_moe");
  EXPECT_EQ(checkpoint->path, folder());
  EXPECT_THAT(checkpoint->warnings, IsEmpty());
  EXPECT_FALSE(checkpoint->digests.has_value());
  EXPECT_EQ(checkpoint->storage.form, Form::hf);
  ASSERT_EQ(checkpoint->model.parameters.size(), raw.size());
  ASSERT_EQ(checkpoint->storage.pieces.size(), raw.size());
  for (auto const& piece : checkpoint->storage.pieces) {
    auto const& parameter = checkpoint->model.parameters[piece.parameter];
    auto const& tensor = raw.at(checkpoint->model.key_of(parameter));
    auto const& file = checkpoint->storage.files[piece.extent.file];
    EXPECT_EQ(file.path, tensor.file);
    EXPECT_EQ(file.size, fs::file_size(tensor.file));
    EXPECT_EQ(piece.extent.bytes, (Range{tensor.offset, tensor.offset + tensor.bytes.size()}));
    EXPECT_EQ(piece.slice, parameter.whole());
  }
}

TEST_F(HfCheckpoint, IsTheSameWhenItsPartsComeByMail) {
  auto const here = open_checkpoint(folder());
  auto const there = assemble(unpack(pack(read_checkpoint_parts(folder(), {}))));
  EXPECT_EQ(there.fingerprint, here->fingerprint);
  EXPECT_EQ(there.path, here->path);
  EXPECT_EQ(there.model.parameters.size(), here->model.parameters.size());
  expect_equal(there.hf.files, here->hf.files);
  expect_equal(there.storage.files, here->storage.files);
}

TEST_F(HfCheckpoint, AFamilyThatContradictsTheConfigIsRefused) {
  EXPECT_EQ(open_checkpoint(folder(), {.family = "qwen3_5_moe"})->family, "qwen3_5_moe");
  EXPECT_THAT(refusal(folder(), {.family = "qwen9"}), HasSubstr("2 unknown family qwen9"));
}

TEST_F(HfCheckpoint, WhatIsNotThereIsNamed) {
  EXPECT_EQ(refusal(dir_.file("nothing")), "66 " + dir_.file("nothing") + ": no such file or folder");
  fs::create_directory(dir_.file("empty"));
  EXPECT_THAT(refusal(dir_.file("empty")), AllOf(HasSubstr("66 "), HasSubstr("empty")));
  EXPECT_THAT(refusal(folder() + "/config.json"), AllOf(HasSubstr("2 "), HasSubstr("rankslice::hdf5")));
}

TEST_F(HfCheckpoint, WithoutTensorsIsRefusedEvenWhereTheyMayBeMissing) {
  auto const nothing = dir_.file("nothing");
  fs::create_directory(nothing);
  test::write_file(nothing + "/model.safetensors", test::raw_header("{}"));
  EXPECT_THAT(refusal(nothing, {.family = "qwen3_5_moe"}), AllOf(HasSubstr("65 " + nothing), HasSubstr("no tensors")));
  auto parts = read_checkpoint_parts(nothing, {.family = "qwen3_5_moe"});
  parts.hf.headers = HeaderOrigin::selection;
  EXPECT_THROW((void)assemble(std::move(parts)), FormatError);
}

TEST_F(HfCheckpoint, WhatAStoreDoesNotHoldIsMissingAndNotReadFromElsewhere) {
  for (auto const format : {CheckpointFormat::store, CheckpointFormat::shards}) {
    auto parts = read_checkpoint_parts(folder(), {});
    parts.format = format;
    try {
      (void)assemble(std::move(parts));
      ADD_FAILURE() << "opened";
    } catch (FormatError const& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr(folder()), HasSubstr("missing")));
    }
  }
}

// ---- a folder of shards ----

/// Shards of two ranks of the small checkpoint, whose headers can be edited.
class Shards : public HfCheckpoint {
 protected:
  Shards() { save(folder(), shards(), make_mesh(2)); }
  std::string shards() const { return dir_.file("shards"); }
  std::string shard(int rank) const { return shards() + "/rank-0000" + std::to_string(rank) + ".safetensors"; }

  static void save(std::string const& from, std::string const& to, Mesh const& mesh) {
    auto const source = open_checkpoint(from);
    for (int rank = 0; rank < mesh.ranks(); ++rank) save_shard(load(source, mesh, mesh.coordinate(rank)), to);
  }

  /// Rewrite the header of a shard, and its data.
  void edit(int rank, std::function<void(Json& header, Bytes& data)> const& change) const {
    auto const file = test::file_bytes(shard(rank));
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < 8; ++i) length |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
    auto const begin = file.begin() + std::ptrdiff_t(8 + length);
    auto const* const text = reinterpret_cast<char const*>(file.data()) + 8;
    auto header = Json::parse(text, text + length);
    Bytes data(begin, file.end());
    change(header, data);
    auto edited = test::raw_header(header.dump());
    edited.insert(edited.end(), data.begin(), data.end());
    test::write_file(shard(rank), edited);
  }
  /// … one field of its metadata, that holds JSON.
  void edit_metadata(int rank, std::string const& field, std::function<void(Json&)> const& change) const {
    edit(rank, [&](Json& header, Bytes&) {
      auto value = Json::parse(header["__metadata__"][field].get<std::string>());
      change(value);
      header["__metadata__"][field] = value.dump();
    });
  }

  static constexpr auto kDense = "lm_head.weight";
  static constexpr auto kStacked = "model.language_model.layers.2.mlp.experts.gate_and_up_projs";  // [4, 16, 16]
};

TEST_F(Shards, HoldEveryTensorInItsNativeFormAndGiveTheSourceBack) {
  auto const checkpoint = open_checkpoint(shards());
  EXPECT_EQ(checkpoint->format, CheckpointFormat::shards);
  EXPECT_EQ(checkpoint->storage.form, Form::native);
  EXPECT_EQ(checkpoint->fingerprint, open_checkpoint(folder())->fingerprint);
  auto const world = make_solo_communicator();
  EXPECT_TRUE(verify(*checkpoint, *world, {.against = open_checkpoint(folder()).get()}).ok());
  to_hf(*checkpoint, dir_.file("back"), *world);
  for (auto const& entry : fs::directory_iterator(folder())) {
    auto const name = entry.path().filename().string();
    EXPECT_TRUE(test::file_bytes(dir_.file("back/" + name)) == test::file_bytes(folder() + "/" + name)) << name;
  }
}

TEST_F(Shards, AreOpenedByAnotherMeshThanTheyWereSavedBy) {
  auto const source = open_checkpoint(shards());
  auto const original = open_checkpoint(folder());
  auto const mesh = make_mesh(3);
  for (int rank = 0; rank < 3; ++rank) {
    auto const state = load(source, mesh, mesh.coordinate(rank));
    auto const expected = load(original, mesh, mesh.coordinate(rank));
    EXPECT_TRUE(verify(state).ok());
    for (auto const& [fqn, tensor] : expected.tensors) {
      auto const span = state.tensors.at(fqn).data.span();
      EXPECT_TRUE(std::ranges::equal(span, tensor.data.span())) << fqn;
    }
  }
}

TEST_F(Shards, AMissingRankIsNamed) {
  fs::remove(shard(1));
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("66 "), HasSubstr("rank-00001.safetensors")));
}

TEST_F(Shards, OfAnotherMeshAreRefused) {
  save(folder(), dir_.file("three"), make_mesh(3));
  fs::copy_file(dir_.file("three/rank-00001.safetensors"), shard(1), fs::copy_options::overwrite_existing);
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("rank-00001.safetensors: belongs to another load")));
}

TEST_F(Shards, OfAnotherSourceAreRefused) {
  edit(1, [](Json& header, Bytes&) { header["__metadata__"]["source_fingerprint"] = std::string(32, '0'); });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("rank-00001.safetensors: belongs to another load")));
}

TEST_F(Shards, UnderTheNameOfAnotherRankAreRefused) {
  fs::copy_file(shard(0), shard(1), fs::copy_options::overwrite_existing);
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("rank-00001.safetensors"), HasSubstr("of rank 0")));
}

// A trained tensor that comes back transposed has as many bytes.
TEST_F(Shards, ATransposedTensorIsRefused) {
  constexpr auto kDown = "model.language_model.layers.2.mlp.experts.down_projs";  // [4, 8, 16]
  edit(1, [](Json& header, Bytes&) { header[kDown]["shape"] = {2, 16, 8}; });
  EXPECT_THAT(refusal(shards()),
              AllOf(HasSubstr("65 "), HasSubstr("rank-00001.safetensors"), HasSubstr(kDown), HasSubstr("[2, 16, 8]")));
}

TEST_F(Shards, AReshapedDenseTensorIsRefused) {
  edit(0, [](Json& header, Bytes&) { header[kDense]["shape"] = {16, 32}; });  // was [32, 16]
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kDense), HasSubstr("[16, 32]")));
}

TEST_F(Shards, AnotherGlobalShapeIsRefused) {
  edit_metadata(0, "tensors", [](Json& tensors) { tensors[kStacked]["global_shape"] = {5, 16, 16}; });
  EXPECT_THAT(refusal(shards()),
              AllOf(HasSubstr("65 "), HasSubstr(kStacked), HasSubstr("[4, 16, 16]"), HasSubstr("[5, 16, 16]")));
}

TEST_F(Shards, AnotherDtypeIsRefused) {
  edit(0, [](Json& header, Bytes&) { header[kDense]["dtype"] = "F16"; });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kDense), HasSubstr("BF16"), HasSubstr("F16")));
}

TEST_F(Shards, OffsetsBeyondTheTensorAreRefused) {
  edit_metadata(1, "tensors", [](Json& tensors) { tensors[kStacked]["offsets"] = {3, 0, 0}; });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kStacked)));
  edit_metadata(1, "tensors", [](Json& tensors) { tensors[kStacked]["offsets"] = {2, 1, 0}; });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kStacked)));
}

TEST_F(Shards, OffsetsAlongAnAxisThatIsNotShardedAreRefused) {
  edit_metadata(1, "tensors", [](Json& tensors) { tensors[kStacked]["offsets"] = {2, 0, 1}; });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kStacked)));
}

TEST_F(Shards, ThatLeaveExpertsOutAreRefused) {
  edit_metadata(1, "tensors", [](Json& tensors) { tensors[kStacked]["offsets"] = {1, 0, 0}; });  // [1, 3), not [2, 4)
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kStacked)));
}

/// Shards of ranks that hold a stacked tensor as `rebuild` leaves it.
class RebuiltShards : public Shards {
 protected:
  void save_rebuilt(Mesh const& mesh, std::function<void(int rank, ShardedTensor&)> const& rebuild) const {
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      auto state = load(open_checkpoint(folder()), mesh, mesh.coordinate(rank));
      rebuild(rank, state.tensors.at(kStacked));
      save_shard(state, rebuilt());
    }
  }
  std::string rebuilt() const { return dir_.file("rebuilt"); }
};

TEST_F(RebuiltShards, ThatOverlapWithoutBeingCopiesAreRefused) {
  auto const whole = load(open_checkpoint(folder()), make_mesh(1), {});
  save_rebuilt(make_mesh(2), [&](int rank, ShardedTensor& tensor) {
    if (rank == 1) tensor = whole.tensors.at(kStacked);
  });
  EXPECT_THAT(refusal(rebuilt()), AllOf(HasSubstr("65 "), HasSubstr(kStacked), HasSubstr("overlap")));
}

// An empty slice between the copies of another, in the order of the files, does not hide that they differ.
TEST_F(RebuiltShards, CopiesThatDifferAreFoundBesideEmptySlices) {
  save_rebuilt({.ep_replicate = 2, .ep_shard = 1, .ep = 2}, [&](int rank, ShardedTensor& tensor) {
    if (rank == 1) {
      tensor.local_shape[0] = tensor.offsets[0] = tensor.data.bytes = 0;
    } else if (rank == 2) {
      *tensor.data.data ^= std::byte{1};
    }
  });
  auto const checkpoint = open_checkpoint(rebuilt());
  auto const world = make_solo_communicator();
  try {
    (void)verify(*checkpoint, *world);
    FAIL() << "took one of two different copies";
  } catch (VerifyError const& error) {
    EXPECT_EQ(error.tensor, kStacked);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("rank-00000.safetensors"), HasSubstr("rank-00002.safetensors")));
  }
}

TEST_F(Shards, ThatLeaveRowsOutAreRefused) {
  fs::remove_all(shards());
  save(folder(), shards(), make_mesh(2, 1, 2));  // rank 1 has the rows [8, 16)
  edit_metadata(1, "tensors", [](Json& tensors) { tensors[kStacked]["offsets"] = {0, 7, 0}; });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kStacked)));
  edit_metadata(1, "tensors", [](Json& tensors) { tensors[kStacked]["offsets"] = {0, 0, 0}; });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr(kStacked), HasSubstr("[0, 4), rows [8, 16)")));
}

TEST_F(Shards, ATensorOfNoSourceIsRefused) {
  for (int rank = 0; rank < 2; ++rank) {
    edit(rank, [](Json& header, Bytes& data) {
      header["lora.weight"] = {{"dtype", "U8"}, {"shape", {1}}, {"data_offsets", {data.size(), data.size() + 1}}};
      data.push_back(std::byte{1});
    });
  }
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("lora.weight"), HasSubstr("__metadata__")));
  for (int rank = 0; rank < 2; ++rank) {
    edit_metadata(rank, "tensors", [](Json& tensors) {
      tensors["lora.weight"] = {{"global_shape", {1}}, {"offsets", {0}}};
    });
  }
  EXPECT_THAT(refusal(shards()),
              AllOf(HasSubstr("65 "), HasSubstr("lora.weight"), HasSubstr("no tensor of the source")));
}

TEST_F(Shards, AMissingTensorIsNamed) {
  for (int rank = 0; rank < 2; ++rank) {
    edit(rank, [](Json& header, Bytes&) {
      header["renamed"] = header[kDense];
      header.erase(kDense);
    });
    edit_metadata(rank, "tensors", [](Json& tensors) {
      tensors["renamed"] = tensors[kDense];
      tensors.erase(kDense);
    });
  }
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("renamed")));
}

// It must not look like one that was left out when the shards were saved.
TEST_F(Shards, ATensorThatOnlyTheMetadataKnowIsMissing) {
  edit(1, [](Json& header, Bytes& data) {
    data.clear();
    auto const metadata = header["__metadata__"];
    header = Json{{"__metadata__", metadata}};
  });
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("65 "), HasSubstr("rank-00001"), HasSubstr("missing")));
}

TEST_F(Shards, WhoseSourceIsGoneGetFreshHeadersAndSaySo) {
  fs::rename(folder(), dir_.file("moved"));
  auto const fresh = open_checkpoint(shards());
  EXPECT_EQ(fresh->hf.headers, HeaderOrigin::state);
  EXPECT_THAT(fresh->hf.side_files, IsEmpty());
  EXPECT_THAT(fresh->warnings, AllOf(Contains(AllOf(HasSubstr(folder()), HasSubstr("fresh"), HasSubstr("--source"))),
                                     Contains(AllOf(HasSubstr("config.json"), HasSubstr("missing from exports")))));
  EXPECT_EQ(refusal(shards(), {.source = dir_.file("moved")}), "opened");
  EXPECT_EQ(open_checkpoint(shards(), {.source = dir_.file("moved")})->catalog.files[0].path,
            dir_.file("moved") + "/model-00001-of-00002.safetensors");
}

TEST_F(Shards, WhoseSourceHasChangedSayHowToGoOn) {
  auto const index = folder() + "/model.safetensors.index.json";
  auto text = test::file_bytes(index);
  text.push_back(std::byte{'\n'});
  test::write_file(index, text);
  EXPECT_THAT(refusal(shards()), AllOf(HasSubstr("66 "), HasSubstr("has changed"), HasSubstr("--source")));
  EXPECT_EQ(refusal(shards(), {.source = folder()}), "opened") << "named explicitly, it is what is wanted";
}

TEST_F(Shards, ASourceThatIsNoCheckpointIsRefused) {
  EXPECT_THAT(refusal(shards(), {.source = dir_.file("nothing")}), AllOf(HasSubstr("66 "), HasSubstr("nothing")));
  EXPECT_THAT(refusal(shards(), {.source = std::string(5000, 'x')}), HasSubstr("66 "));
}

// Shards of shards: load from a folder, train, save into another, or the same one.
TEST_F(Shards, ThatWereLoadedFromShardsLeadToTheFirstSource) {
  save(shards(), dir_.file("second"), make_mesh(1));
  fs::remove_all(shards());
  auto const second = open_checkpoint(dir_.file("second"));
  EXPECT_EQ(second->source, folder());
  EXPECT_EQ(second->fingerprint, open_checkpoint(folder())->fingerprint);
  auto const world = make_solo_communicator();
  EXPECT_TRUE(verify(*second, *world, {.against = open_checkpoint(folder()).get()}).ok());
}

}  // namespace
}  // namespace rankslice
