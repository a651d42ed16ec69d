// States whose ranks hold other slices than their mesh gives them, as FSDP, HSDP and torch's chunks divide tensors:
// verified, exported, gathered and kept as shards as any other.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <mutex>

#include "rankslice/gather.hpp"
#include "rankslice/load.hpp"
#include "rankslice/to_hf.hpp"
#include "rankslice/verify.hpp"

#include "support/divided_state.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Every file of a folder: name -> bytes.
std::map<std::string, Bytes> files_in(std::string const& folder) {
  std::map<std::string, Bytes> files;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    files[entry.path().filename().string()] = file_bytes(entry.path().string());
  }
  return files;
}

/// Ten experts in each layer: 3, 3, 3 and 1 of them are torch's quarters, where a mesh has 3, 3, 2 and 2.
class DividedStates : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempDir>();
    synthesize(checkpoint(), {.experts = 10});
    whole_ = load(open_checkpoint(checkpoint()), make_mesh(1), MeshCoordinate{});
  }
  static void TearDownTestSuite() {
    whole_ = {};
    folder_.reset();
  }
  static std::string path(std::string const& name) { return folder_->file(name); }
  static std::string checkpoint() { return path("checkpoint"); }
  static StateDict const& whole() { return whole_; }

  /// `use` on every rank, with its state.
  static void on_ranks(WayToDivide const& way, std::function<void(StateDict& state, Communicator& world)> const& use) {
    SCOPED_TRACE(way.name);
    run_ranks(way.ranks, [&](Communicator& world) {
      auto state = divide(whole_, way, world.rank());
      use(state, world);
    });
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

TEST_F(DividedStates, AreProvedAtEveryLevel) {
  for (auto const& way : ways_to_divide()) {
    for (auto const level : {VerifyLevel::coverage, VerifyLevel::full, VerifyLevel::reread}) {
      on_ranks(way, [&](StateDict const& state, Communicator& world) {
        auto const report = verify(state, world, {.level = level});
        EXPECT_TRUE(report.ok()) << way.name << ": " << report.mismatches.front().what;
      });
    }
  }
}

TEST_F(DividedStates, AreProvedAgainstTheFilesThatTheyAreOf) {
  auto const source = open_checkpoint(checkpoint());
  for (auto const& way : ways_to_divide()) {
    on_ranks(way, [&](StateDict const& state, Communicator& world) {
      auto const report = verify(state, world, {.against = source.get()});
      EXPECT_TRUE(report.ok()) << way.name << ": " << report.mismatches.front().what;
      EXPECT_EQ(report.reference, "against");
    });
  }
}

}  // namespace
}  // namespace rankslice::test
