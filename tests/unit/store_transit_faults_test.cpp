// Bits that flip between ranks while they write: the output is what it should be, or it is not there.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"

#include "support/divided_state.hpp"
#include "support/misbehaving_communicator.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

using Effect = TransitFault::Effect;
using Files = std::map<std::string, std::vector<char>>;
using Write = std::function<void(StateDict const&, std::string const&, Communicator&)>;

constexpr int kRanks = 2;
constexpr std::array kCalls{CallKind::all_reduce, CallKind::broadcast, CallKind::gather};

/// A file, or all of a folder; nothing of what is not there.
Files contents(std::filesystem::path const& path) {
  std::vector<std::filesystem::path> files;
  if (std::filesystem::is_regular_file(path)) files.push_back(path);
  if (std::filesystem::is_directory(path)) {
    for (auto const& entry : std::filesystem::recursive_directory_iterator(path)) files.push_back(entry.path());
  }
  Files found;
  for (auto const& file : files) {
    std::ifstream stream(file, std::ios::binary);
    found[std::filesystem::relative(file, path).string()] = {std::istreambuf_iterator<char>(stream), {}};
  }
  return found;
}

class StoreTransitFaults : public testing::Test {
 protected:
  StoreTransitFaults() {
    synthesize(dir_.file("checkpoint"), {.layers = 1, .experts = 3});
    run_ranks(kRanks, [&](Communicator& world) {
      auto const source = open_checkpoint(dir_.file("checkpoint"), world);
      states_[static_cast<std::size_t>(world.rank())] = load(source, make_mesh(kRanks), world);
    });
  }

  /// From now on each rank holds half of every tensor.
  void divide_states() {
    auto const whole = load(open_checkpoint(dir_.file("checkpoint")), make_mesh(1), MeshCoordinate{});
    for (int rank = 0; rank < kRanks; ++rank) {
      states_.at(static_cast<std::size_t>(rank)) = divide(whole, fsdp(kRanks), rank);
    }
  }

  /// What stands there after all ranks have written, or have failed to; the calls of the faulty rank are counted.
  Files written(Write const& write, int faulty, TransitFault const& fault, std::map<CallKind, unsigned>& calls) {
    auto const path = dir_.file("out");
    std::filesystem::remove_all(path);
    auto const thrown = exceptions_of_ranks(kRanks, [&](Communicator& inner) {
      MisbehavingCommunicator world(inner, inner.rank() == faulty ? fault : TransitFault{});
      write(states_[static_cast<std::size_t>(inner.rank())], path, world);
      if (inner.rank() != faulty) return;
      for (auto const call : kCalls) calls[call] = world.calls(call);
    });
    EXPECT_EQ(thrown[0] == nullptr, thrown[1] == nullptr);
    EXPECT_EQ(thrown[0] == nullptr, std::filesystem::exists(path));
    return contents(path);
  }

  void expect_right_or_nothing(Write const& write) {
    for (int faulty = 0; faulty < kRanks; ++faulty) {
      std::map<CallKind, unsigned> calls, ignored;
      auto const right = written(write, faulty, {}, calls);
      ASSERT_FALSE(right.empty());
      for (auto const& [call, count] : calls) {
        for (unsigned number = 0; number < count; ++number) {
          for (auto const effect : {Effect::flip_given, Effect::flip_taken}) {
            auto const found =
                written(write, faulty, {.effect = effect, .call = call, .number = number, .bit = 64 * 3 + 12}, ignored);
            EXPECT_TRUE(found.empty() || found == right)
                << fmt::format("call {} of kind {}, rank {}, {}", number, static_cast<int>(call), faulty,
                               effect == Effect::flip_given ? "given" : "taken");
          }
        }
      }
    }
  }

 private:
  TempDir dir_;
  std::array<StateDict, kRanks> states_;
};

TEST_F(StoreTransitFaults, AStoreIsRightOrNotThere) {
  expect_right_or_nothing(
      [](StateDict const& state, std::string const& path, Communicator& world) { save_store(state, path, world); });
}

TEST_F(StoreTransitFaults, AnExportIsRightOrNotThere) {
  expect_right_or_nothing(
      [](StateDict const& state, std::string const& path, Communicator& world) { to_hf(state, path, world); });
}

TEST_F(StoreTransitFaults, AnExportOfDividedTensorsIsRightOrNotThere) {
  divide_states();
  expect_right_or_nothing(
      [](StateDict const& state, std::string const& path, Communicator& world) { to_hf(state, path, world); });
}

}  // namespace
}  // namespace rankslice::test
