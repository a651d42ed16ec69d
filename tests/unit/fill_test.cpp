// States over memory of the caller's, which hold any parts of a checkpoint's tensors, are given its values.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <random>
#include <sstream>
#include <stop_token>

#include "rankslice/error.hpp"
#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/device_bytes.hpp"
#include "support/late_device.hpp"
#include "support/local_parts.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using test::CallersTensors;
using test::LateDevice;
using test::Part;
using testing::AllOf;
using testing::HasSubstr;

using Source = std::shared_ptr<Checkpoint const>;

/// Every tensor whole, in memory of our own.
StateDict load_all(Source const& source) {
  return load(source, make_mesh(1), MeshCoordinate{}, {.call = {.threads = 1}});
}

StateDict state_of(Source const& source, CallersTensors const& callers) {
  return make_state_dict(source, callers.tensors(), make_mesh(1), MeshCoordinate{});
}

void expect_parts_of(StateDict const& whole, StateDict const& state, CallersTensors const& callers) {
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const& memory = callers.memory(fqn);
    auto const& all = whole.tensors.at(fqn);
    auto const element = element_bytes(tensor.parameter.dtype);
    auto const expected = test::bytes_in({.offsets = tensor.offsets, .shape = tensor.local_shape},
                                         test::copy_of(all.data), tensor.parameter.shape, element);
    EXPECT_TRUE(memory.bytes() == expected) << fqn << " at " << to_string(tensor.offsets);
    EXPECT_TRUE(memory.surroundings_untouched()) << fqn;
  }
}

// ---- every form that a checkpoint's tensors have ----

struct Case {
  std::string name;
  SynthOptions checkpoint;
  OpenOptions open{};
  std::function<void(StateDict const&, std::string const& folder)> save{};  ///< The source is what was saved.
};

void PrintTo(Case const& example, std::ostream* out) { *out << example.name; }

SynthOptions small(SynthOptions options) {
  options.layers = 1;
  options.experts = 3;
  return options;
}

std::vector<Case> cases() {
  auto const split = small({.decoder_experts = ExpertForm::split, .mtp_experts = ExpertForm::split});
  auto const shards = [](StateDict const& state, std::string const& folder) {
    auto const mesh = make_mesh(4, 2, 2);
    for (int rank = 0; rank < mesh.ranks(); ++rank) save_shard(load(state.source, mesh, mesh.coordinate(rank)), folder);
  };
  return {
      {.name = "grouped", .checkpoint = small({})},
      {.name = "grouped_as_native", .checkpoint = small({.family = "qwen3_vl_moe"})},
      {.name = "split", .checkpoint = split},
      {.name = "as_float32", .checkpoint = small({}), .open = {.dtype = DType::F32}},
      {.name = "as_float16", .checkpoint = split, .open = {.dtype = DType::F16}},
      {.name = "fp8", .checkpoint = small({.quantization = SynthQuantization::fp8})},
      {.name = "shards", .checkpoint = small({}), .save = shards},
  };
}

class Fill : public testing::TestWithParam<Case> {
 protected:
  Fill() {
    synthesize(dir_.file("checkpoint"), GetParam().checkpoint);
    source_ = open_checkpoint(dir_.file("checkpoint"), GetParam().open);
    if (GetParam().save) {
      GetParam().save(load_all(source_), dir_.file("saved"));
      source_ = open_checkpoint(dir_.file("saved"));
    }
    whole_ = load_all(source_);
  }

  [[nodiscard]] CallersTensors random_parts(std::mt19937& random) const {
    return {source_->model, [&](Parameter const& parameter) { return test::random_part(parameter, random); }};
  }

  test::TempDir dir_;
  Source source_;
  StateDict whole_;
};

// Whatever the parts, and however they lie across the blocks of 128 that have one scale (rule 59).
TEST_P(Fill, EveryPartGetsItsBytesOfTheWholeAndNoOtherMemoryIsTouched) {
  std::mt19937 random(7);
  for (int round = 0; round < 8; ++round) {
    auto const callers = random_parts(random);
    auto state = state_of(source_, callers);
    Progress last;
    fill(state,
         {.call = {.threads = 1 << (round % 5), .progress = [&](Progress const& progress) { last = progress; }}});
    expect_parts_of(whole_, state, callers);
    EXPECT_GT(last.total, 0U);
    EXPECT_EQ(last.done, last.total);
  }
}

TEST_P(Fill, EachElementIsDigestedByTheOneRankThatHoldsIt) {
  constexpr std::size_t kRanks = 6;
  std::mt19937 random(8);
  std::map<std::string, std::vector<Part>> tilings;
  for (auto const& parameter : source_->model.parameters) {
    tilings[parameter.fqn] = test::random_tiling(parameter, kRanks, random);
  }
  Digests sum(source_->model);
  auto const add = [](DigestTable& to, DigestTable const& more) {
    for (std::size_t i = 0; i < to.values().size(); ++i) to.values()[i] += more.values()[i];
  };
  for (std::size_t rank = 0; rank < kRanks; ++rank) {
    CallersTensors const callers(source_->model, [&](Parameter const& parameter) -> std::optional<Part> {
      auto const& tiling = tilings.at(parameter.fqn);
      return rank < tiling.size() ? std::optional(tiling[rank]) : std::nullopt;
    });
    auto state = state_of(source_, callers);
    fill(state, {.call = {.threads = 1 + static_cast<int>(rank)}});
    expect_parts_of(whole_, state, callers);
    add(sum.source, state.read.source);
    add(sum.stored, state.read.stored);
  }
  EXPECT_TRUE(std::ranges::equal(sum.source.values(), whole_.read.source.values()));
  EXPECT_TRUE(std::ranges::equal(sum.stored.values(), whole_.read.stored.values()));
}

TEST_P(Fill, MemoryOfADeviceGetsTheSameAsTheHosts) {
  std::mt19937 random(9);
  auto const callers = random_parts(random);
  auto const device = std::make_shared<LateDevice>();
  auto tensors = callers.tensors();
  for (auto& [fqn, tensor] : tensors) {
    tensor.data = {.data = device->allocate(tensor.data.bytes), .bytes = tensor.data.bytes, .device = device};
  }
  auto on_device = make_state_dict(source_, tensors, make_mesh(1), {});
  auto on_host = state_of(source_, callers);
  fill(on_device);
  fill(on_host);
  for (auto const& [fqn, tensor] : on_device.tensors) {
    auto const* const data =
        tensor.data.data.get();  // which other users of the device find as it is when the call ends
    EXPECT_TRUE(Bytes(data, data + tensor.data.bytes) == callers.memory(fqn).bytes()) << fqn;
  }
  EXPECT_TRUE(std::ranges::equal(on_device.read.source.values(), on_host.read.source.values()));
  EXPECT_TRUE(std::ranges::equal(on_device.read.stored.values(), on_host.read.stored.values()));
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Fill, testing::ValuesIn(cases()),
                         [](auto const& instance) { return instance.param.name; });

// ---- what is read ----

/// What the system has counted as read by this process, and how much of it asking took.
struct Counted {
  std::uint64_t bytes = 0, by_asking = 0;
};

std::optional<Counted> bytes_read() {
  std::ifstream stream("/proc/self/io");
  std::stringstream text;
  text << stream.rdbuf();
  auto const said = text.str();
  if (!said.starts_with("rchar: ")) return std::nullopt;
  return Counted{.bytes = std::stoull(said.substr(7)), .by_asking = said.size()};
}

struct FillTinyCheckpoint : testing::Test {
  Source open(SynthOptions const& options = small({})) {
    synthesize(dir.file("checkpoint"), options);
    return open_checkpoint(dir.file("checkpoint"));
  }
  test::TempDir dir;
};

constexpr auto kEmbedding = "model.language_model.embed_tokens.weight";
constexpr auto kDown = "model.language_model.layers.0.mlp.experts.down_projs";

/// Only of these tensors is anything held.
CallersTensors holding(Source const& source, std::map<std::string, Part> const& parts) {
  return {source->model, [&](Parameter const& parameter) -> std::optional<Part> {
            auto const found = parts.find(parameter.fqn);
            return found != parts.end() ? std::optional(found->second) : std::nullopt;
          }};
}

// All of them were needed for the values, so that as many bytes as there are wanted means: each once, and no other.
TEST_F(FillTinyCheckpoint, ExactlyTheBytesThatAreHeldAreRead) {
  if (!bytes_read()) GTEST_SKIP() << "the system does not count what a process reads";
  auto const source = open(small({.family = "qwen3_vl_moe"}));  // whose experts lie as in memory
  auto const whole = load_all(source);
  std::mt19937 random(10);
  for (int round = 0; round < 5; ++round) {
    CallersTensors const callers(source->model,
                                 [&](Parameter const& parameter) { return test::random_part(parameter, random); });
    auto state = state_of(source, callers);
    std::uint64_t held = 0;
    for (auto const& [fqn, tensor] : state.tensors) held += tensor.data.bytes;
    std::vector<Progress> seen;
    auto const before = bytes_read();
    fill(state,
         {.call = {.threads = 1 + round, .progress = [&](Progress const& progress) { seen.push_back(progress); }}});
    EXPECT_EQ(bytes_read()->bytes - before->bytes - before->by_asking, held);
    expect_parts_of(whole, state, callers);
    EXPECT_EQ(seen.back().done, held);
    EXPECT_EQ(seen.back().total, held);
  }
}

TEST_F(FillTinyCheckpoint, OfRowsThatAreColumnsOfTheFileTheFilesRowsAreReadWhole) {  // Parameter::read_for
  if (!bytes_read()) GTEST_SKIP() << "the system does not count what a process reads";
  auto const source = open();
  // [3, 96, 256]: two experts, and 10 of the 96 rows of each.
  auto const callers = holding(source, {{kDown, {.offsets = {1, 7, 0}, .shape = {2, 10, 256}}}});
  auto state = state_of(source, callers);
  auto const before = bytes_read();
  fill(state, {.call = {.threads = 2}});
  EXPECT_EQ(bytes_read()->bytes - before->bytes - before->by_asking, 2U * 96 * 256 * 2);
  expect_parts_of(load_all(source), state, callers);
}

TEST_F(FillTinyCheckpoint, OnlyTheFilesOfTensorsThatAreHeldAreOpened) {
  test::write_small_checkpoint(dir.file("checkpoint"));
  auto const source = open_checkpoint(dir.file("checkpoint"));
  auto const whole = load_all(source);
  auto const& files = source->catalog.files;
  ASSERT_EQ(files.size(), 2U);
  CallersTensors const callers(source->model, [&](Parameter const& parameter) -> std::optional<Part> {
    auto const file = source->catalog.tensors[parameter.tensors.front()].extent.file;
    return file == 0 ? std::optional(test::whole_part(parameter.shape)) : std::nullopt;
  });
  auto state = state_of(source, callers);
  ASSERT_LT(state.tensors.size(), whole.tensors.size());
  ASSERT_FALSE(state.tensors.empty());
  std::filesystem::remove(files[1].path);
  fill(state);
  expect_parts_of(whole, state, callers);
}

TEST_F(FillTinyCheckpoint, WithoutVerifyingNothingIsDigested) {
  auto const source = open();
  auto state = state_of(source, holding(source, {{kEmbedding, {{3, 0}, {5, 256}}}}));
  fill(state);
  EXPECT_GT(state.read.source.tensors(), 0U);
  fill(state, {.verify = VerifyLevel::off});
  EXPECT_EQ(state.read.source.tensors(), 0U) << "what another call read says nothing of these values";
}

TEST_F(FillTinyCheckpoint, AfterAnErrorNothingCountsAsRead) {
  auto const source = open();
  CallersTensors const callers(source->model, [](auto const& p) { return test::whole_part(p.shape); });
  auto state = state_of(source, callers);
  fill(state);
  auto const right = state.read;
  for (auto const threads : {1, 2, 5}) {
    std::stop_source stop;
    auto const stop_later = [&](Progress const& progress) {
      if (progress.done * 8 > progress.total) stop.request_stop();
    };
    EXPECT_THROW(fill(state, {.call = {.threads = threads, .progress = stop_later, .stop = stop.get_token()}}),
                 Interrupted);
    EXPECT_EQ(state.read.source.tensors(), 0U);
    digest_source(state);  // which would keep what there is
    EXPECT_TRUE(std::ranges::equal(state.read.source.values(), right.source.values()));
  }
}

TEST_F(FillTinyCheckpoint, AStopTokenStopsIt) {
  auto const source = open();
  CallersTensors const callers(source->model, [](auto const& p) { return test::whole_part(p.shape); });
  auto state = state_of(source, callers);
  std::stop_source stop;
  stop.request_stop();
  EXPECT_THROW(fill(state, {.call = {.stop = stop.get_token()}}), Interrupted);
}

// ---- devices ----

TEST_F(FillTinyCheckpoint, TensorsOfOneStateMayBeInSeveralMemories) {  // parameters that FSDP offloads, for example
  auto const source = open();
  auto const whole = load_all(source);
  auto const first = std::make_shared<LateDevice>(), second = std::make_shared<LateDevice>();  // each knows its memory
  std::vector<std::shared_ptr<Device>> const devices{first, nullptr, second};
  CallersTensors const callers(source->model, [](auto const& p) { return test::whole_part(p.shape); });
  auto tensors = callers.tensors();
  std::size_t next = 0;
  for (auto& [fqn, tensor] : tensors) {
    auto const& device = devices[next++ % devices.size()];
    if (device) tensor.data = {device->allocate(tensor.data.bytes), tensor.data.bytes, device};
  }
  auto state = make_state_dict(source, tensors, make_mesh(1), {});
  fill(state);
  for (auto const& [fqn, tensor] : state.tensors) {
    EXPECT_TRUE(test::copy_of(tensor.data) == test::copy_of(whole.tensors.at(fqn).data)) << fqn;
  }
  EXPECT_GT(first->uploads(), 0U);
  EXPECT_GT(second->uploads(), 0U);
}

// Not even to one of two devices when the other one has failed.
TEST_F(FillTinyCheckpoint, AfterAnErrorNothingIsOnItsWayToTheCallersMemory) {
  auto const source = open();
  CallersTensors const callers(source->model, [](auto const& p) { return test::whole_part(p.shape); });
  for (std::size_t failing = 0; failing < 2; ++failing) {
    std::vector<std::shared_ptr<LateDevice>> const devices{std::make_shared<LateDevice>(),
                                                           std::make_shared<LateDevice>()};
    auto tensors = callers.tensors();
    std::size_t next = 0;
    for (auto& [fqn, tensor] : tensors) {
      auto const& device = devices[next++ % 2];
      tensor.data = {device->allocate(tensor.data.bytes), tensor.data.bytes, device};
    }
    auto state = make_state_dict(source, tensors, make_mesh(1), {});
    auto const fail_when_uploading = [&](Progress const&) {
      if (devices[0]->uploads() > 2 && devices[1]->uploads() > 2) devices[failing]->calls_until_failure = 0;
    };
    EXPECT_THROW(fill(state, {.call = {.progress = fail_when_uploading}}), DeviceError);
    ASSERT_EQ(devices[failing]->calls_until_failure, 0U);
    constexpr std::byte kOthers{0x77};
    for (auto const& [fqn, tensor] : tensors) std::fill_n(tensor.data.data.get(), tensor.data.bytes, kOthers);
    devices[1 - failing]->finish();
    for (auto const& [fqn, tensor] : tensors) {
      auto const* const data = tensor.data.data.get();
      EXPECT_TRUE(Bytes(data, data + tensor.data.bytes) == Bytes(tensor.data.bytes, kOthers)) << fqn;
    }
  }
}

// ---- refusals ----

TEST_F(FillTinyCheckpoint, AStateThatIsNotWhatItSaysIsRefusedBeforeAnythingIsRead) {
  auto const source = open();
  auto const callers = holding(source, {{kEmbedding, {{3, 0}, {5, 256}}}, {kDown, {{0, 0, 0}, {1, 96, 256}}}});
  auto const right = state_of(source, callers);
  auto const refusal = [&](std::function<void(ShardedTensor&)> const& change) {
    auto state = right;
    change(state.tensors.at(kEmbedding));
    auto const refused = test::refusal_of([&] { fill(state); });
    EXPECT_EQ(refused.code, ExitCode::usage);
    EXPECT_EQ(refused.tensor, kEmbedding);
    EXPECT_TRUE(callers.memory(kDown).bytes() == Bytes(96 * 256 * 2, std::byte{0xA5}));
    return refused.message;
  };
  EXPECT_THAT(refusal([](auto& tensor) { tensor.data.bytes -= 2; }),
              HasSubstr("takes 2560 bytes, its buffer has 2558"));
  EXPECT_THAT(refusal([](auto& tensor) { tensor.data.data.reset(); }), HasSubstr("[5, 256] has no memory"));
  EXPECT_THAT(refusal([](auto& tensor) { tensor.offsets[1] = 1; }), HasSubstr("is no slice of"));
}

TEST_F(FillTinyCheckpoint, AStateWhoseValuesStandInNoFileIsRefused) {
  auto const weights = std::make_shared<Bytes>(64);
  Buffer const memory{.data = {weights, weights->data()}, .bytes = 64};
  auto state = make_state_dict({{"lm_head.weight", {.dtype = DType::BF16, .global_shape = {8, 4}, .data = memory}}},
                               make_mesh(1), {}, {.family = "qwen3_5_moe", .partial = true});
  auto const refused = test::refusal_of([&] { fill(state); });
  EXPECT_EQ(refused.code, ExitCode::usage);
  EXPECT_EQ(refused.tensor, "lm_head.weight");
  EXPECT_THAT(refused.message, HasSubstr("are in none of the files"));
}

// ---- together ----

TEST_F(FillTinyCheckpoint, AFileThatIsBadOnOneRankEndsItOnAllWithTheSameMessage) {
  open();
  std::filesystem::copy(dir.file("checkpoint"), dir.file("of rank 1"));
  test::run_ranks(3, [&](Communicator& world) {
    auto const folder = dir.file(world.rank() == 1 ? "of rank 1" : "checkpoint");
    auto const source = open_checkpoint(folder);
    auto const cut = source->catalog.files[0].path;
    if (world.rank() == 1) std::filesystem::resize_file(cut, source->catalog.files[0].size - 1);
    CallersTensors const callers(source->model, [](auto const& p) { return test::whole_part(p.shape); });
    auto const mesh = make_mesh(3);
    auto state = make_state_dict(source, callers.tensors(), mesh, mesh.coordinate(world.rank()));
    try {
      fill(state, world);
      ADD_FAILURE() << "filled";
    } catch (FormatError const& error) {
      EXPECT_EQ(error.rank, 1);
      EXPECT_EQ(error.file, dir.file("of rank 1") + cut.substr(cut.rfind('/')));
      EXPECT_THAT(error.what(), AllOf(HasSubstr("of rank 1/"), HasSubstr("bytes, as when its header was read, found")));
    }
  });
}

TEST_F(FillTinyCheckpoint, RanksThatDoNotFitTogetherAreRefusedOnAll) {
  auto const source = open();
  auto const refusals = [&](
                            std::function<StateDict(int)> const& state_of_rank,
                            std::function<FillOptions(int)> const& options = [](int) { return FillOptions{}; }) {
    std::vector<std::string> messages(2);
    test::run_ranks(2, [&](Communicator& world) {
      auto state = state_of_rank(world.rank());
      auto const refused = test::refusal_of([&] { fill(state, world, options(world.rank())); });
      EXPECT_EQ(refused.code, ExitCode::usage);
      messages[static_cast<std::size_t>(world.rank())] = refused.message;
    });
    EXPECT_EQ(messages[0], messages[1]);
    return messages[0];
  };
  auto const at = [&](Mesh const& mesh, int rank) { return make_state_dict(source, {}, mesh, mesh.coordinate(rank)); };
  EXPECT_THAT(refusals([&](int) { return at(make_mesh(2), 0); }), HasSubstr("the state is that of rank 0 of 2"));
  EXPECT_THAT(refusals([&](int) { return at(make_mesh(1), 0); }), HasSubstr("rank 0 of 1"));
  EXPECT_THAT(refusals([&](int rank) { return at(make_mesh(2, rank + 1), rank); }), HasSubstr("another mesh"));
  EXPECT_THAT(
      refusals([&](int rank) { return at(make_mesh(2), rank); },
               [](int rank) { return FillOptions{.verify = rank == 0 ? VerifyLevel::full : VerifyLevel::off}; }),
      HasSubstr("verify level off"));
}

TEST_F(FillTinyCheckpoint, OneRankWithAnotherRevisionEndsItOnAllBeforeAnythingIsRead) {
  auto const source = open();
  synthesize(dir.file("other"), small({.seed = 2}));
  auto other = std::make_shared<Checkpoint>(*open_checkpoint(dir.file("other")));
  other->digests.emplace(other->model);  // a manifest that the others' has not
  other->digests_from = "manifest";
  test::run_ranks(2, [&](Communicator& world) {
    auto const& mine = world.rank() == 1 ? Source(other) : source;
    auto const callers = holding(mine, {{kEmbedding, {{3, 0}, {5, 256}}}});
    auto const mesh = make_mesh(2);
    auto state = make_state_dict(mine, callers.tensors(), mesh, mesh.coordinate(world.rank()));
    auto const refused = test::refusal_of([&] { fill(state, world); });
    EXPECT_EQ(refused.code, ExitCode::usage);
    EXPECT_THAT(refused.message, AllOf(HasSubstr("rank 1"), HasSubstr("has another checkpoint than rank 0")));
    EXPECT_TRUE(callers.memory(kEmbedding).bytes() == Bytes(5 * 256 * 2, std::byte{0xA5}));
  });
}

TEST_F(FillTinyCheckpoint, WhatTheMeshGivesIsProvedLikeALoadedState) {
  auto const source = open();
  test::run_ranks(2, [&](Communicator& world) {
    auto const mesh = make_mesh(2);
    auto const loaded = load(source, mesh, mesh.coordinate(world.rank()));
    CallersTensors const callers(source->model, [&](Parameter const& parameter) {
      auto const& tensor = loaded.tensors.at(parameter.fqn);
      return std::optional(Part{.offsets = tensor.offsets, .shape = tensor.local_shape});
    });
    auto state = make_state_dict(source, callers.tensors(), mesh, mesh.coordinate(world.rank()));
    fill(state, world);
    EXPECT_TRUE(verify(state, world).ok());
    if (world.rank() != 1) return;
    state.tensors.at(kDown).data.span().back() ^= std::byte{1};
    EXPECT_FALSE(verify(state).ok());
  });
}

}  // namespace
}  // namespace rankslice
