#include "rankslice/make_state_dict.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "rankslice/error.hpp"
#include "rankslice/to_hf.hpp"

#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr auto kGateUp = "model.language_model.layers.0.mlp.experts.gate_and_up_projs";
constexpr auto kDown = "model.language_model.layers.0.mlp.experts.down_projs";
constexpr auto kHead = "lm_head.weight";

Buffer buffer_of(Bytes const& bytes) {
  auto const memory = std::make_shared<Bytes>(bytes);
  return {.data = std::shared_ptr<std::byte>(memory, memory->data()), .bytes = memory->size()};
}

LocalTensor random_tensor(DType dtype, Shape const& global, std::uint64_t bytes, std::uint64_t seed) {
  return {.dtype = dtype, .global_shape = global, .data = buffer_of(test::random_bytes(bytes, seed))};
}

/// Rank 0 of 2: three of five experts (rule 9) of H = 4, I = 3, and a dense tensor.
std::map<std::string, LocalTensor> three_of_five() {
  return {{kGateUp, random_tensor(DType::F16, {5, 4, 6}, 3 * 4 * 6 * 2, 1)},
          {kDown, random_tensor(DType::F32, {5, 3, 4}, 3 * 3 * 4 * 4, 2)},
          {kHead, random_tensor(DType::BF16, {8, 4}, 8 * 4 * 2, 3)}};
}

StateDict make(std::map<std::string, LocalTensor> const& tensors, Mesh const& mesh, StateOptions const& options) {
  return make_state_dict(tensors, mesh, {}, options);
}

StateOptions const kQwen{.family = "qwen3_5_moe"};

std::string refusal(std::function<void()> const& call) {
  try {
    call();
    return "accepted";
  } catch (Error const& error) {
    return error.what();
  }
}

std::string refusal(std::map<std::string, LocalTensor> const& tensors) {
  return refusal([&] { (void)make(tensors, make_mesh(2), kQwen); });
}

TEST(MakeStateDict, PlacesEachBufferWithoutCopyingIt) {
  auto const tensors = three_of_five();
  auto const state = make(tensors, make_mesh(2), kQwen);
  ASSERT_EQ(state.tensors.size(), 3U);
  auto const& down = state.tensors.at(kDown);
  EXPECT_EQ(down.data.data, tensors.at(kDown).data.data);
  EXPECT_EQ(down.parameter.dtype, DType::F32);
  EXPECT_EQ(down.parameter.hf_dtype, DType::F32);
  EXPECT_EQ(down.local_shape, (Shape{3, 3, 4}));
  EXPECT_EQ(down.offsets, (Shape{0, 0, 0}));
  EXPECT_EQ(down.placements[2], (Placement{.kind = Placement::Kind::shard, .dim = 0}));
  EXPECT_EQ(state.tensors.at(kHead).local_shape, (Shape{8, 4}));
}

TEST(MakeStateDict, ItsSourceIsTheCheckpointThatAnExportWrites) {
  auto const source = make(three_of_five(), make_mesh(2), kQwen).source;
  EXPECT_EQ(source->format, CheckpointFormat::state);
  EXPECT_EQ(source->hf.headers, HeaderOrigin::state);
  EXPECT_EQ(source->source, "");
  EXPECT_EQ(source->catalog.files[0].name, "model.safetensors");
  EXPECT_EQ(source->catalog.files[0].path, "") << "nothing is there yet";
  std::vector<std::string> keys;
  for (auto const& tensor : source->catalog.tensors) keys.push_back(tensor.name);
  // By dtype, F32 first, as safetensors orders a file.
  EXPECT_THAT(keys, ElementsAre("model.language_model.layers.0.mlp.experts.down_proj", kHead,
                                "model.language_model.layers.0.mlp.experts.gate_up_proj"));
  EXPECT_EQ(source->catalog.tensors[0].shape, (Shape{5, 4, 3})) << "axes 1 and 2 swapped (rule 46)";
}

TEST(MakeStateDict, FilesAreFilledInTheOrderOfTheNames) {
  auto options = kQwen;
  options.max_file_bytes = 200;  // less than the experts have
  auto const source = make(three_of_five(), make_mesh(2), options).source;
  ASSERT_EQ(source->catalog.files.size(), 3U);
  EXPECT_EQ(source->catalog.tensors[0].name, "model.language_model.layers.0.mlp.experts.down_proj");
  EXPECT_EQ(source->catalog.tensors[2].name, kHead);
}

TEST(MakeStateDict, Rule25_ExtraStateIsLeftOutAsUpstreamsSaverDoes) {
  auto tensors = three_of_five();
  tensors["model.language_model.layers.0.mlp._extra_state"] = random_tensor(DType::U8, {3}, 3, 4);
  tensors["x._extra_state_1"] = random_tensor(DType::U8, {3}, 3, 4);
  EXPECT_EQ(make(tensors, make_mesh(2), kQwen).tensors.size(), 3U);
}

TEST(MakeStateDict, WhatGdnHoldsInLessThanF32IsExportedAsHeld) {  // rule 55 is about loading
  constexpr auto kLog = "model.language_model.layers.0.linear_attn._fp32_params.A_log";
  auto tensors = three_of_five();
  tensors[kLog] = random_tensor(DType::BF16, {4}, 8, 5);
  auto const state = make(tensors, make_mesh(2), kQwen);
  EXPECT_EQ(state.tensors.at(kLog).parameter.dtype, DType::BF16);
  EXPECT_FALSE(state.tensors.at(kLog).parameter.converted());

  test::TempDir const dir;
  for (int rank = 0; rank < 2; ++rank) {
    auto const mesh = make_mesh(2);
    auto mine = tensors;
    if (rank == 1) {
      mine[kGateUp] = random_tensor(DType::F16, {5, 4, 6}, 2 * 4 * 6 * 2, 6);
      mine[kDown] = random_tensor(DType::F32, {5, 3, 4}, 2 * 3 * 4 * 4, 7);
    }
    save_shard(make_state_dict(mine, mesh, mesh.coordinate(rank), kQwen), dir.file("shards"));
  }
  auto const shards = open_checkpoint(dir.file("shards"));
  to_hf(*shards, dir.file("out"), *make_solo_communicator());
  auto const exported = test::read_raw_tensors(dir.file("out"));
  auto const& log = exported.at("model.language_model.layers.0.linear_attn.A_log");
  EXPECT_EQ(log.dtype, "BF16");
  EXPECT_EQ(log.bytes, test::random_bytes(8, 5));
}

// ---- parts that the mesh does not give ----

TEST(MakeStateDict, APartLiesWhereItsOffsetsSay) {
  auto tensors = three_of_five();
  tensors[kDown].offsets = {2, 1, 0};  // of [5, 3, 4]
  tensors[kDown].local_shape = {2, 2, 4};
  tensors[kDown].data = buffer_of(Bytes(2 * 2 * 4 * 4));
  tensors[kHead].offsets = {3, 0};  // of [8, 4]
  tensors[kHead].local_shape = {5, 4};
  tensors[kHead].data = buffer_of(Bytes(5 * 4 * 2));
  auto const state = make(tensors, make_mesh(2), kQwen);
  auto const& down = state.tensors.at(kDown);
  EXPECT_EQ(down.offsets, (Shape{2, 1, 0}));
  EXPECT_EQ(down.local_shape, (Shape{2, 2, 4}));
  EXPECT_EQ(down.slice(), (Slice{.part = {2, 4}, .rows = {1, 3}}));
  EXPECT_EQ(state.tensors.at(kHead).slice(), (Slice{.part = {12, 32}}));
  EXPECT_THAT(down.placements, testing::IsEmpty());
  EXPECT_EQ(state.tensors.at(kGateUp).local_shape, (Shape{3, 4, 6})) << "rule 9, where nothing is said";
}

TEST(MakeStateDict, Rule16_APartThatIsTheMeshsHasItsPlacements) {
  auto tensors = three_of_five();
  auto const unsaid = make(tensors, make_mesh(2), kQwen);
  for (auto& [fqn, tensor] : tensors) {
    tensor.offsets = unsaid.tensors.at(fqn).offsets;
    tensor.local_shape = unsaid.tensors.at(fqn).local_shape;
  }
  for (auto const& [fqn, tensor] : make(tensors, make_mesh(2), kQwen).tensors) {
    EXPECT_EQ(tensor.placements, unsaid.tensors.at(fqn).placements) << fqn;
    EXPECT_EQ(tensor.placements.size(), 3U) << fqn;
  }
}

TEST(MakeStateDict, PartsThatNoRankCanHoldAreRefused) {
  auto const refused = [](char const* fqn, Shape const& offsets, Shape const& local_shape) {
    auto tensors = three_of_five();
    tensors[fqn].offsets = offsets;
    tensors[fqn].local_shape = local_shape;
    EXPECT_THAT(refusal(tensors), AllOf(HasSubstr(fqn), HasSubstr("is no slice of"))) << to_string(offsets);
  };
  refused(kHead, {4, 0}, {5, 4});            // it ends behind the tensor
  refused(kHead, {0, 1}, {8, 3});            // columns
  refused(kHead, {0}, {8});                  // another number of axes
  refused(kDown, {0, 0, 1}, {3, 3, 3});      // columns
  refused(kDown, {~0ULL, 0, 0}, {2, 3, 4});  // a sum that wraps around
}

TEST(MakeStateDict, APartThatSaysOnlyHalfOfWhereItLiesIsRefused) {
  auto tensors = three_of_five();
  tensors[kHead].offsets = {0, 0};
  EXPECT_THAT(refusal(tensors), AllOf(HasSubstr(kHead), HasSubstr("its part has offsets but no local shape")));
  tensors[kHead].offsets = {};
  tensors[kHead].local_shape = {8, 4};
  EXPECT_THAT(refusal(tensors), AllOf(HasSubstr(kHead), HasSubstr("its part has a local shape but no offsets")));
}

// ---- tensors of a checkpoint ----

class OfACheckpoint : public testing::Test {
 protected:
  OfACheckpoint() {
    test::write_small_checkpoint(dir_.file("checkpoint"));
    source_ = open_checkpoint(dir_.file("checkpoint"));
  }
  [[nodiscard]] std::string refusal_of(std::string const& fqn, LocalTensor const& tensor) const {
    return refusal([&] { (void)make_state_dict(source_, {{fqn, tensor}}, make_mesh(1), {}); });
  }
  test::TempDir dir_;
  std::shared_ptr<Checkpoint const> source_;
};

TEST_F(OfACheckpoint, SomeOfItsTensorsMakeAStateOfIt) {
  auto const& parameters = source_->model.parameters;
  auto const& dense = parameters[source_->model.tensors[0].parameter];
  auto const tensor = random_tensor(dense.dtype, dense.shape, byte_size(dense.dtype, dense.shape), 1);
  auto const state = make_state_dict(source_, {{dense.fqn, tensor}}, make_mesh(2), {.ep = 1});
  EXPECT_EQ(state.source, source_);
  EXPECT_EQ(state.coordinate.ep, 1);
  ASSERT_EQ(state.tensors.size(), 1U);
  EXPECT_EQ(state.tensors.at(dense.fqn).data.data, tensor.data.data) << "not copied";
  EXPECT_EQ(parameters[state.tensors.at(dense.fqn).index].fqn, dense.fqn);
}

TEST_F(OfACheckpoint, TensorsThatItDoesNotHaveSoAreRefusedByName) {
  auto const& norm = *std::ranges::find(source_->model.parameters, "model.language_model.norm.weight", &Parameter::fqn);
  ASSERT_EQ(norm.dtype, DType::BF16);
  auto const bytes = byte_size(norm.dtype, norm.shape);
  auto const right = random_tensor(norm.dtype, norm.shape, bytes, 1);
  EXPECT_EQ(refusal_of(norm.fqn, right), "accepted");
  EXPECT_THAT(refusal_of("norm.weight", right),
              AllOf(HasSubstr("norm.weight: is no tensor of"), HasSubstr(dir_.file("checkpoint"))));

  auto other = right;
  other.dtype = DType::F16;
  EXPECT_THAT(refusal_of(norm.fqn, other),
              AllOf(HasSubstr(norm.fqn + ": is F16 " + to_string(norm.shape)), HasSubstr("it is BF16")));
  other = right;
  other.global_shape = {norm.shape[0] / 2, 2};
  EXPECT_THAT(refusal_of(norm.fqn, other), HasSubstr("it is BF16 " + to_string(norm.shape)));
  other = right;
  other.data.bytes -= 1;
  EXPECT_THAT(refusal_of(norm.fqn, other), AllOf(HasSubstr(norm.fqn), HasSubstr("its buffer has")));
  other = right;
  other.offsets = {1};
  other.local_shape = norm.shape;
  EXPECT_THAT(refusal_of(norm.fqn, other), AllOf(HasSubstr(norm.fqn), HasSubstr("is no slice of")));
}

TEST_F(OfACheckpoint, ACoordinateOutsideTheMeshIsRefused) {
  EXPECT_THROW((void)make_state_dict(source_, {}, make_mesh(2), {.ep = 2}), PlanError);
}

// ---- how exports hold experts ----

/// The keys and shapes that an export of a state writes.
std::map<std::string, Shape> exported_shapes(StateDict const& state) {
  std::map<std::string, Shape> shapes;
  for (auto const& tensor : state.source->catalog.tensors) shapes[tensor.name] = tensor.shape;
  return shapes;
}

TEST(MakeStateDict, Rule61_ExpertsOfQwen3VlLieAsAskedEvenWhereShapesDoNotTell) {
  // E = 2, H = 4, I = 4: a D of [4, 4] lies the same way in both layouts.
  std::map<std::string, LocalTensor> const tensors{{kGateUp, random_tensor(DType::BF16, {2, 4, 8}, 2 * 4 * 8 * 2, 1)},
                                                   {kDown, random_tensor(DType::BF16, {2, 4, 4}, 2 * 4 * 4 * 2, 2)}};
  constexpr auto kKey = "model.language_model.layers.0.mlp.experts.gate_up_proj";
  auto const hub = make(tensors, make_mesh(1), {.family = "qwen3_vl_moe"});
  EXPECT_EQ(exported_shapes(hub).at(kKey), (Shape{2, 4, 8}));
  auto const transformers =
      make(tensors, make_mesh(1), {.family = "qwen3_vl_moe", .expert_layout = ExpertLayout::transformers});
  EXPECT_EQ(exported_shapes(transformers).at(kKey), (Shape{2, 8, 4}));

  // Shards remember it.
  test::TempDir const dir;
  auto const world = make_solo_communicator();
  to_hf(transformers, dir.file("out"), *world);
  save_shard(transformers, dir.file("shards"));
  to_hf(*open_checkpoint(dir.file("shards")), dir.file("again"), *world);
  EXPECT_EQ(test::file_bytes(dir.file("again/model.safetensors")), test::file_bytes(dir.file("out/model.safetensors")));
}

TEST(MakeStateDict, Rule45_ExpertsOfMtpAreSplitWhenAskedTo) {
  auto tensors = three_of_five();
  tensors["mtp.layers.0.mlp.experts.gate_and_up_projs"] = random_tensor(DType::BF16, {5, 4, 6}, 3 * 4 * 6 * 2, 4);
  tensors["mtp.layers.0.mlp.experts.down_projs"] = random_tensor(DType::BF16, {5, 3, 4}, 3 * 3 * 4 * 2, 5);
  auto const shapes =
      exported_shapes(make(tensors, make_mesh(2), {.family = "qwen3_5_moe", .mtp_experts = ExpertForm::split}));
  EXPECT_EQ(shapes.size(), 3U + 5 * 3);
  EXPECT_EQ(shapes.at("mtp.layers.0.mlp.experts.4.up_proj.weight"), (Shape{3, 4}));
  EXPECT_EQ(shapes.at("mtp.layers.0.mlp.experts.0.down_proj.weight"), (Shape{4, 3}));
  EXPECT_TRUE(shapes.contains("model.language_model.layers.0.mlp.experts.down_proj")) << "the decoder's are not";
}

TEST(MakeStateDict, Rule28_TheCallersWordOnMtpExpertsComesBeforeConfigJsons) {
  auto tensors = three_of_five();
  tensors["mtp.layers.0.mlp.experts.gate_and_up_projs"] = random_tensor(DType::BF16, {5, 4, 6}, 3 * 4 * 6 * 2, 4);
  tensors["mtp.layers.0.mlp.experts.down_projs"] = random_tensor(DType::BF16, {5, 3, 4}, 3 * 3 * 4 * 2, 5);
  test::TempDir const dir;
  test::write_file(dir.file("config.json"), test::bytes_of(R"({"mtp_expert_hf_layout": "per_expert"})"));
  auto const side_files = side_files_in(dir.path().string());
  auto const split = [&](StateOptions const& options) {
    return exported_shapes(make(tensors, make_mesh(2), options)).contains("mtp.layers.0.mlp.experts.4.up_proj.weight");
  };
  EXPECT_FALSE(split({.family = "qwen3_5_moe"}));
  EXPECT_TRUE(split({.family = "qwen3_5_moe", .side_files = side_files}));
  EXPECT_FALSE(split({.family = "qwen3_5_moe", .mtp_experts = ExpertForm::grouped, .side_files = side_files}));

  test::write_file(dir.file("config.json"), test::bytes_of(R"({"mtp_expert_hf_layout": "both"})"));
  auto const odd = side_files_in(dir.path().string());
  EXPECT_THAT(refusal([&] { (void)split({.family = "qwen3_5_moe", .side_files = odd}); }),
              AllOf(HasSubstr("config.json"), HasSubstr("'both'")));
}

TEST(MakeStateDict, SideFilesOfAFolderAreThoseThatAreNoWeights) {
  test::TempDir const dir;
  for (auto const* name : {"config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json",
                           "pytorch_model.bin", "rank-00000.safetensors"}) {
    test::write_file(dir.file(name), test::bytes_of("{}"));
  }
  std::vector<std::string> names;
  for (auto const& side : side_files_in(dir.path().string())) names.push_back(side.name);
  EXPECT_THAT(names, ElementsAre("config.json", "tokenizer.json"));
  EXPECT_THAT(refusal([&] { (void)side_files_in(dir.file("absent")); }), HasSubstr("absent"));
}

TEST(MakeStateDict, ABufferOfAnotherSizeIsNamedWithWhatWasExpected) {
  auto tensors = three_of_five();
  tensors[kDown].data = buffer_of(Bytes(2 * 3 * 4 * 4));
  EXPECT_THAT(refusal(tensors),
              AllOf(HasSubstr(kDown), HasSubstr("[3, 3, 4]"), HasSubstr("144 bytes"), HasSubstr("has 96")));
}

TEST(MakeStateDict, NamesThatWouldNotComeBackAreRefused) {
  auto tensors = three_of_five();
  tensors["model.language_model.layers.0.mlp.shared_expert.up_proj.weight"] = random_tensor(DType::BF16, {2}, 4, 8);
  EXPECT_THAT(refusal(tensors), HasSubstr("shared_expert.up_proj.weight"));  // the native name has shared_experts
}

TEST(MakeStateDict, NamesThatAreNoUtf8AreRefused) {
  auto tensors = three_of_five();
  tensors["caf\xe9"] = random_tensor(DType::BF16, {2}, 4, 8);
  EXPECT_THROW((void)make(tensors, make_mesh(2), kQwen), FormatError);
  EXPECT_THAT(refusal(tensors), AllOf(HasSubstr("caf\\xe9"), HasSubstr("UTF-8")));
}

TEST(MakeStateDict, AConfigJsonOfAbsurdSizeIsNotRead) {
  auto options = kQwen;
  options.side_files = {
      {.name = "config.json", .size = std::uint64_t{1} << 40, .path = "/some/config.json", .checksum = {}}};
  EXPECT_THAT(refusal([&] { (void)make(three_of_five(), make_mesh(2), options); }),
              AllOf(HasSubstr("/some/config.json"), HasSubstr("at most 268435456 bytes")));
}

TEST(MakeStateDict, SideFilesWhoseNamesLeadElsewhereAreRefused) {
  for (std::string const name : {"../config.txt", "", "model.safetensors"}) {
    auto options = kQwen;
    options.side_files = {{.name = name, .path = {}, .checksum = {}}};
    EXPECT_THAT(refusal([&] { (void)make(three_of_five(), make_mesh(2), options); }), HasSubstr("'" + name + "'"));
  }
}

TEST(MakeStateDict, ExpertsThatDoNotFitEachOtherAreRefused) {
  auto tensors = three_of_five();
  tensors[kDown] = random_tensor(DType::F32, {5, 7, 4}, 3 * 7 * 4 * 4, 2);
  EXPECT_THAT(refusal(tensors), HasSubstr("experts"));
  tensors[kDown] = random_tensor(DType::F32, {5, 12}, 3 * 12 * 4, 2);
  EXPECT_THAT(refusal(tensors), HasSubstr("3 axes"));
  tensors.erase(kDown);
  EXPECT_THAT(refusal(tensors), AllOf(HasSubstr("down_proj"), HasSubstr("missing")));
}

TEST(MakeStateDict, CoordinatesOutsideTheMeshAreRefused) {
  for (auto const& at : {MeshCoordinate{.ep = 2}, MeshCoordinate{.ep = -1}, MeshCoordinate{.ep_shard = 1},
                         MeshCoordinate{.ep_replicate = 1}}) {
    EXPECT_THROW((void)make_state_dict(three_of_five(), make_mesh(2), at, kQwen), PlanError);
  }
  EXPECT_THROW((void)make_state_dict(three_of_five(), {.ep = 0}, {}, kQwen), PlanError);
}

TEST(MakeStateDict, NothingAndUnknownFamiliesAreRefused) {
  EXPECT_THAT(refusal(std::map<std::string, LocalTensor>{}), HasSubstr("without tensors"));
  EXPECT_THAT(refusal([] { (void)make(three_of_five(), make_mesh(2), {.family = "llama"}); }), HasSubstr("llama"));
}

}  // namespace
}  // namespace rankslice
