// States whose ranks hold other slices than their mesh gives them, as FSDP, HSDP and torch's chunks divide tensors:
// verified, exported, gathered and kept as shards like any other.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "rankslice/gather.hpp"
#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/device_bytes.hpp"
#include "support/divided_state.hpp"
#include "support/late_device.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"
#include "verify/rank_tables.hpp"

namespace rankslice::test {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr auto kNorm = "model.language_model.norm.weight";
constexpr auto kDown = "model.language_model.layers.0.mlp.experts.down_projs";
constexpr auto kDownKey = "model.language_model.layers.0.mlp.experts.down_proj";

/// Every file of a folder: name -> bytes.
std::map<std::string, Bytes> files_in(std::string const& folder) {
  std::map<std::string, Bytes> files;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    files[entry.path().filename().string()] = file_bytes(entry.path().string());
  }
  return files;
}

using OnRank = std::function<void(StateDict& state, Communicator& world)>;

/// Ten experts in each layer: torch's quarters are 3, 3, 3 and 1 of them, where a mesh has 3, 3, 2 and 2.
class DividedStates : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempDir>();
    synthesize(checkpoint(), {.layers = 1, .experts = 10});
    whole_ = load(open_checkpoint(checkpoint()), make_mesh(1), MeshCoordinate{});
  }
  static void TearDownTestSuite() {
    whole_ = {};
    folder_.reset();
  }
  static std::string path(std::string const& name) { return folder_->file(name); }
  static std::string checkpoint() { return path("checkpoint"); }
  static std::uint64_t length_of(std::string const& fqn) { return whole_.tensors.at(fqn).parameter.part_count(); }

  static void on_ranks(WayToDivide const& way, OnRank const& use, ThreadWorld const& world_of = {}) {
    auto const on_rank = [&](Communicator& world) {
      auto state = divide(whole_, way, world.rank());
      use(state, world);
    };
    run_ranks(way.mesh.ranks(), on_rank, world_of);
  }
  /// What verification finds when `change` was done to the state of one rank.
  static std::vector<std::string> found(WayToDivide const& way, int changed,
                                        std::function<void(StateDict&)> const& change,
                                        VerifyLevel level = VerifyLevel::full) {
    std::vector<std::string> what;
    on_ranks(way, [&](StateDict& state, Communicator& world) {
      if (world.rank() == changed) change(state);
      auto const report = verify(state, world, {.level = level});
      if (world.rank() != 0) return;
      for (auto const& mismatch : report.mismatches) what.push_back(mismatch.what);
    });
    return what;
  }
  /// How all outputs refuse it.
  static std::vector<std::string> refusals(WayToDivide const& way, int changed,
                                           std::function<void(StateDict&)> const& change) {
    std::vector<std::string> messages;
    on_ranks(way, [&](StateDict& state, Communicator& world) {
      if (world.rank() == changed) change(state);
      for (auto const& refusal : {refusal_of([&] { to_hf(state, path("none"), world); }),
                                  refusal_of([&] { to_hf(state, path("none"), world, {.gather = true}); }),
                                  refusal_of([&] { save_shards(state, path("none"), world); }),
                                  refusal_of([&] { gather(state, world, {}, [](HfBlock const&) {}); })}) {
        EXPECT_EQ(refusal.code, ExitCode::difference);
        if (world.rank() == 0) messages.push_back(refusal.message);
      }
    });
    EXPECT_FALSE(std::filesystem::exists(path("none")));
    return messages;
  }

 private:
  static inline std::unique_ptr<TempDir> folder_;
  static inline StateDict whole_;
};

TEST_F(DividedStates, GoHomeByteForByte) {
  auto const expected = files_in(checkpoint());
  for (auto const& way : ways_to_divide()) {
    for (auto const through_one : {false, true}) {
      on_ranks(way, [&](StateDict const& state, Communicator& world) {
        auto const report = to_hf(state, path("out"), world, {.overwrite = true, .gather = through_one});
        EXPECT_EQ(report.headers, HeaderOrigin::source);
      });
      EXPECT_TRUE(files_in(path("out")) == expected) << way.name << (through_one ? ", through one rank" : "");
    }
  }
}

TEST_F(DividedStates, AreProvedAtEveryLevelAndAgainstTheFilesThatTheyAreOf) {
  auto const source = open_checkpoint(checkpoint());
  for (auto const& way : ways_to_divide()) {
    on_ranks(way, [&](StateDict const& state, Communicator& world) {
      for (auto const level : {VerifyLevel::coverage, VerifyLevel::full, VerifyLevel::reread}) {
        auto const* const against = level == VerifyLevel::full ? source.get() : nullptr;
        auto const report = verify(state, world, {.level = level, .against = against});
        EXPECT_TRUE(report.ok()) << way.name << ": " << report.mismatches.front().what;
      }
    });
  }
}

TEST_F(DividedStates, AreHandedOutWhole) {
  auto const expected = read_raw_tensors(checkpoint());
  for (auto const& way : ways_to_divide()) {
    auto const ranks = way.mesh.ranks();
    std::vector<std::string> hosts{"a", "b", "a", "b"};
    hosts.resize(static_cast<std::size_t>(ranks));
    for (auto const receivers : {Receivers::one_rank, Receivers::first_ranks_of_hosts, Receivers::all_ranks}) {
      on_ranks(way,
               [&](StateDict const& state, Communicator& world) {
                 std::map<std::string, Bytes> handed;
                 gather(state, world, {.receivers = receivers, .rank = ranks - 1}, [&](HfBlock const& block) {
                   auto& bytes = handed[block.tensor.key];
                   bytes.insert(bytes.end(), block.data.begin(), block.data.end());
                 });
                 auto const receives = receivers == Receivers::all_ranks ||
                                       world.rank() == (receivers == Receivers::one_rank ? ranks - 1 : 0) ||
                                       (receivers == Receivers::first_ranks_of_hosts && world.rank() == 1);
                 EXPECT_EQ(handed.size(), receives ? expected.size() : 0) << way.name;
                 for (auto const& [key, bytes] : handed) {
                   EXPECT_TRUE(bytes == expected.at(key).bytes) << way.name << ": " << key;
                 }
               },
               {.hosts = hosts});
    }
  }
}

/// The same with all of its tensors in the memory of a device.
StateDict on_device(StateDict state) {
  auto const device = std::make_shared<LateDevice>();
  for (auto& [fqn, tensor] : state.tensors) {
    auto const memory = tensor.data.span();
    tensor.data = {.data = upload(*device, memory), .bytes = memory.size(), .device = device};
  }
  return state;
}

TEST_F(DividedStates, OnDevicesAreProvedAndGoHome) {
  auto const expected = files_in(checkpoint());
  for (auto const& way : ways_to_divide()) {
    on_ranks(way, [&](StateDict const& on_host, Communicator& world) {
      auto const state = on_device(on_host);
      EXPECT_TRUE(verify(state, world).ok()) << way.name;
      to_hf(state, path("out"), world, {.overwrite = true, .gather = true});
    });
    EXPECT_TRUE(files_in(path("out")) == expected) << way.name;
  }
}

TEST_F(DividedStates, KeptAsShardsAreOpenedAgain) {
  auto const expected = files_in(checkpoint());
  for (auto const& way : ways_to_divide()) {
    on_ranks(way, [&](StateDict const& state, Communicator& world) {
      save_shards(state, path("shards"), world, {.overwrite = true});
      auto const shards = open_checkpoint(path("shards"), world);
      EXPECT_TRUE(verify(*shards, world).ok()) << way.name;
      auto const again = load(shards, make_mesh(world.size()), world);  // under the mesh's own slices
      EXPECT_TRUE(verify(again, world).ok()) << way.name;
      to_hf(again, path("out"), world, {.overwrite = true});
    });
    EXPECT_TRUE(files_in(path("out")) == expected) << way.name;
  }
}

TEST_F(DividedStates, NeedNotLieAsAnyMeshCouldDivideThem) {
  WayToDivide way = fsdp(3);
  way.mesh = {.ep_replicate = 1, .ep_shard = 3, .ep = 1};  // which does not divide 64 rows
  on_ranks(way, [&](StateDict const& state, Communicator& world) {
    EXPECT_TRUE(verify(state, world).ok());
    to_hf(state, path("out"), world, {.overwrite = true});
  });
  EXPECT_TRUE(files_in(path("out")) == files_in(checkpoint()));
}

/// A state whose parts were read by themselves from what they are of.
StateDict read_parts(std::shared_ptr<Checkpoint const> const& source, WayToDivide const& way, Communicator& world) {
  CallersTensors const tensors(source->model,
                               [&](Parameter const& parameter) { return way.part(parameter, world.rank()); });
  auto state = make_state_dict(source, tensors.tensors(), way.mesh, way.mesh.coordinate(world.rank()));
  fill(state, world);
  return state;
}

// Cuts go through blocks of 128 x 128, whose scale counts once.
TEST_F(DividedStates, OfQuantisedWeightsAreProvedAndGoHomeAsTheyCame) {
  TempDir const dir;
  synthesize(dir.file("fp8"), {.layers = 1, .experts = 5, .quantization = SynthQuantization::fp8});
  auto const source = open_checkpoint(dir.file("fp8"));
  for (auto const& way : ways_to_divide()) {
    run_ranks(way.mesh.ranks(), [&](Communicator& world) {
      auto const state = read_parts(source, way, world);
      auto const report = verify(state, world, {.level = VerifyLevel::reread});
      EXPECT_TRUE(report.ok()) << way.name << ": " << report.mismatches.front().what;
      auto const against = verify(state, world, {.against = source.get()});
      EXPECT_TRUE(against.ok()) << way.name << ": " << against.mismatches.front().what;
      EXPECT_FALSE(against.without_codes);
      to_hf(state, dir.file("out"), world, {.overwrite = true, .layout = ExportLayout::source});
    });
    EXPECT_TRUE(files_in(dir.file("out")) == files_in(dir.file("fp8"))) << way.name;
  }
}

TEST_F(DividedStates, OfConvertedValuesAreProvedAndGoHomeAsTheyCame) {
  auto const source = open_checkpoint(checkpoint(), {.dtype = DType::F32});
  for (auto const& way : {fsdp(3), hsdp()}) {
    run_ranks(way.mesh.ranks(), [&](Communicator& world) {
      auto const state = read_parts(source, way, world);
      EXPECT_TRUE(verify(state, world).ok()) << way.name;
      to_hf(state, path("out"), world, {.overwrite = true, .layout = ExportLayout::source});
    });
    EXPECT_TRUE(files_in(path("out")) == files_in(checkpoint())) << way.name;
  }
}

// ---- what is wrong is found ----

TEST_F(DividedStates, AByteThatFlippedInOnePartIsFoundWithItsRank) {
  auto const flip = [](char const* fqn) {
    return [fqn](StateDict& state) { state.tensors.at(fqn).data.span().back() ^= std::byte{1}; };
  };
  EXPECT_THAT(found(fsdp(4), 2, flip(kNorm)), ElementsAre(StartsWith(fmt::format("rank 2: {}: read digest", kNorm))));
  EXPECT_THAT(found(fsdp(4), 3, flip(kDown)),  // which has the last expert
              ElementsAre(StartsWith(fmt::format("rank 3: layer 0, expert 9 of {}: read digest", kDownKey))));
}

void forget(StateDict& state, std::string const& fqn) {
  auto& tensor = state.tensors.at(fqn);
  tensor.local_shape[0] = 0;
  tensor.data.bytes = 0;
}

TEST_F(DividedStates, APartThatNobodyHoldsIsFound) {
  auto const length = length_of(kNorm);
  auto const part = torch_chunk(length, 3, 1);
  auto const missing = fmt::format("{}: elements [{}, {}) of {} held by no rank", kNorm, part.begin, part.end, length);
  auto const forget_norm = [](StateDict& state) { forget(state, kNorm); };
  EXPECT_THAT(found(fsdp(3), 1, forget_norm, VerifyLevel::coverage), ElementsAre(missing));
  EXPECT_THAT(refusals(fsdp(3), 1, forget_norm), Each(HasSubstr(missing)));
  EXPECT_THAT(found(
                  fsdp(4), 3, [](StateDict& state) { forget(state, kDown); }, VerifyLevel::coverage),
              ElementsAre(fmt::format("expert 9 of {}: held by no rank", kDownKey)));
}

TEST_F(DividedStates, PartsThatOverlapAreFoundWithTheirRanks) {
  auto const length = length_of(kNorm);
  auto const second = torch_chunk(length, 2, 1);
  auto const move_up = [](StateDict& state) { --state.tensors.at(kNorm).offsets[0]; };
  auto const begin = second.begin - 1;
  EXPECT_THAT(
      refusals(fsdp(2), 1, move_up),
      Each(AllOf(HasSubstr(fmt::format("{}: elements [{}, {}) of {} held by rank 0 in [0, {}) and by rank 1 in "
                                       "[{}, {}), which overlap without being the same",
                                       kNorm, begin, second.begin, length, second.begin, begin, length - 1)),
                 HasSubstr(fmt::format("elements [{}, {}) of {} held by no rank", length - 1, length, length)))));
}

/// As if the rank had read something else.
void misread(StateDict& state, std::string const& fqn) {
  auto& tensor = state.tensors.at(fqn);
  tensor.data.span().front() ^= std::byte{1};
  StateDict only{.tensors = {{fqn, tensor}},
                 .mesh = state.mesh,
                 .coordinate = state.coordinate,
                 .source = state.source,
                 .read = {}};
  auto const now = digest_held(only, {}, nullptr);
  for (auto const index : tensor.parameter.tensors) {
    std::ranges::copy(now.source.of(index), state.read.source.of(index).begin());
  }
}

TEST_F(DividedStates, ACopyThatDiffersIsFoundWithItsRank) {
  auto const misread_norm = [](StateDict& state) { misread(state, kNorm); };
  EXPECT_THAT(
      found(hsdp(), 3, misread_norm),
      ElementsAre(AllOf(StartsWith(fmt::format("rank 3: {}: rank 1's digest", kNorm)), HasSubstr("read here"))));
  EXPECT_THAT(refusals(hsdp(), 3, misread_norm), Each(AllOf(HasSubstr("rank 3: "), HasSubstr("held here"))));
  EXPECT_THAT(found(hsdp(), 2, [](StateDict& state) { misread(state, kDown); }),
              ElementsAre(StartsWith(fmt::format("rank 2: layer 0, expert 0 of {}: rank 0's digest", kDownKey))));
}

// Who has them first sends all that it knows: of many such ranks only some are asked.
TEST_F(DividedStates, CopiesThatDifferFromManyRanksAreFoundEach) {
  constexpr int kHalf = 10;
  WayToDivide const way{"hsdp 2 x 10", make_mesh(2 * kHalf), [](Parameter const& parameter, int rank) {
                          auto part = whole_part(parameter.shape);
                          auto const chunk = torch_chunk(parameter.shape[0], kHalf, rank % kHalf);
                          part.offsets[0] = chunk.begin;
                          part.shape[0] = chunk.size();
                          return part;
                        }};
  on_ranks(way, [&](StateDict& state, Communicator& world) {
    if (world.rank() >= kHalf) misread(state, kNorm);
    auto const report = verify(state, world);
    for (int rank = kHalf; rank < 2 * kHalf; ++rank) {
      EXPECT_TRUE(std::ranges::any_of(report.mismatches, [&](Mismatch const& m) {
        return m.rank == rank && m.tensor == kNorm;
      })) << rank;
    }
    EXPECT_EQ(report.mismatches.front().what.find("read here is not as"), std::string::npos) << "names both digests";
    EXPECT_THAT(report.mismatches.back().what,
                AllOf(StartsWith(fmt::format("rank 19: {}: ", kNorm)), HasSubstr("rank 9")));
  });
}

}  // namespace
}  // namespace rankslice::test
