// Bits that flip between ranks: what is shared is proved, or what depends on it is.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/load.hpp"
#include "rankslice/verify.hpp"

#include "support/divided_state.hpp"
#include "support/misbehaving_communicator.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

using Effect = TransitFault::Effect;

constexpr int kRanks = 2;

struct Loaded {
  std::shared_ptr<Checkpoint const> source;
  std::vector<StateDict> states;
};

Loaded load_on_all(std::string const& path, Mesh const& mesh) {
  Loaded loaded{.source = open_checkpoint(path),
                .states = std::vector<StateDict>(static_cast<std::size_t>(mesh.ranks()))};
  run_ranks(mesh.ranks(), [&](Communicator& world) {
    auto const source = open_checkpoint(path, world);
    loaded.states[static_cast<std::size_t>(world.rank())] = load(source, mesh, world);
  });
  return loaded;
}

/// Dense tensors in halves, experts whole on both ranks.
Loaded divide_on_all(std::string const& path) {
  WayToDivide const way{"", make_mesh(kRanks), [](Parameter const& parameter, int rank) {
                          auto const halves = fsdp(kRanks);
                          return parameter.stacked_experts ? whole_part(parameter.shape) : halves.part(parameter, rank);
                        }};
  Loaded loaded{.source = open_checkpoint(path), .states = {}};
  auto const whole = load(loaded.source, make_mesh(1), MeshCoordinate{});
  for (int rank = 0; rank < kRanks; ++rank) loaded.states.push_back(divide(whole, way, rank));
  return loaded;
}

constexpr std::array kBits{std::uint64_t{0}, std::uint64_t{63}, std::uint64_t{64 * 7 + 13}};

/// How verifying ended with a fault on one rank.
struct Verification {
  bool noticed = false;  ///< A rank threw, or reports a difference.
  bool waited = false;   ///< A rank gave up waiting for another.
  bool struck = false;
  std::map<CallKind, unsigned> calls;  ///< Of the faulty rank.
};

Verification verify_with(Loaded const& loaded, int faulty, TransitFault const& fault) {
  Verification result;
  std::vector<char> ok(loaded.states.size());
  auto const verify_rank = [&](Communicator& inner) {
    MisbehavingCommunicator world(inner, inner.rank() == faulty ? fault : TransitFault{});
    auto const mine = static_cast<std::size_t>(inner.rank());
    auto const record = [&] {
      if (inner.rank() != faulty) return;
      result.struck = world.struck();
      for (auto const call : {CallKind::all_reduce, CallKind::broadcast, CallKind::gather}) {
        result.calls[call] = world.calls(call);
      }
    };
    try {
      ok[mine] = verify(loaded.states[mine], world, {.against = loaded.source.get()}).ok() ? 1 : 0;
      record();
    } catch (...) {
      record();
      throw;
    }
  };
  auto const thrown = exceptions_of_ranks(kRanks, verify_rank, {.timeout = std::chrono::seconds(3)});
  for (std::size_t rank = 0; rank < ok.size(); ++rank) result.noticed |= thrown[rank] != nullptr || ok[rank] == 0;
  for (auto const& error : thrown) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (CommError const&) {
      result.waited = true;
    } catch (std::exception const&) {
    }
  }
  return result;
}

/// Every fault of one bit in a call of `verify`, on either rank.
void for_each_flip(Loaded const& loaded, std::function<void(int, TransitFault const&)> const& step) {
  for (int faulty = 0; faulty < kRanks; ++faulty) {
    for (auto const& [call, count] : verify_with(loaded, faulty, {}).calls) {
      ASSERT_GT(count, 0U);
      for (unsigned number = 0; number < count; ++number) {
        for (auto const bit : kBits) {
          for (auto const effect : {Effect::flip_given, Effect::flip_taken}) {
            step(faulty, {.effect = effect, .call = call, .number = number, .bit = bit});
          }
        }
      }
    }
  }
}

std::string describe(int faulty, TransitFault const& fault) {
  auto const* const call = fault.call == CallKind::all_reduce  ? "all_reduce"
                           : fault.call == CallKind::broadcast ? "broadcast"
                                                               : "gather";
  return fmt::format("bit {} of what rank {} {} in {} {}", fault.bit, faulty,
                     fault.effect == Effect::flip_given ? "gives" : "takes", call, fault.number);
}

class TransitFaults : public testing::Test {
 protected:
  TransitFaults() { synthesize(checkpoint(), {.experts = 3}); }

  [[nodiscard]] std::string checkpoint() const { return dir_.file("checkpoint"); }
  [[nodiscard]] Loaded loaded() const { return load_on_all(checkpoint(), make_mesh(kRanks)); }
  /// As the mesh says, and not.
  [[nodiscard]] std::vector<Loaded> both() const { return {loaded(), divide_on_all(checkpoint())}; }

 private:
  TempDir dir_;
};

TEST_F(TransitFaults, VerifyNoticesEveryBitThatFlipsInASumOfDigests) {
  for (auto const& states : both()) {
    ASSERT_FALSE(verify_with(states, 0, {}).noticed);
    for_each_flip(states, [&](int faulty, TransitFault const& fault) {
      auto const found = verify_with(states, faulty, fault);
      EXPECT_TRUE(found.struck);
      // Rank 0 compares with the reference, for all: elsewhere nobody looks at some sums.
      if (fault.call != CallKind::all_reduce || (fault.effect == Effect::flip_taken && faulty != 0)) return;
      EXPECT_TRUE(found.noticed) << describe(faulty, fault);
    });
  }
}

TEST_F(TransitFaults, NoFlippedBitMakesRanksOfVerifyWaitForEachOther) {
  for (auto const& states : both()) {
    for_each_flip(states, [&](int faulty, TransitFault const& fault) {
      EXPECT_FALSE(verify_with(states, faulty, fault).waited) << describe(faulty, fault);
    });
  }
}

TEST_F(TransitFaults, NoFlippedBitHidesADifferenceFromVerify) {
  for (std::size_t damaged = 0; damaged < kRanks; ++damaged) {
    for (auto const& states : both()) {
      states.states[damaged].tensors.begin()->second.data.span()[5] ^= std::byte{1};
      ASSERT_TRUE(verify_with(states, 0, {}).noticed);
      for_each_flip(states, [&](int faulty, TransitFault const& fault) {
        EXPECT_TRUE(verify_with(states, faulty, fault).noticed) << describe(faulty, fault);
      });
    }
  }
}

TEST_F(TransitFaults, NoRankOpensACheckpointFromWhatWasDamagedOnItsWay) {
  auto const open_with = [&](int faulty, TransitFault const& fault) {
    unsigned broadcasts = 0;
    auto const thrown = exceptions_of_ranks(kRanks, [&](Communicator& inner) {
      MisbehavingCommunicator world(inner, inner.rank() == faulty ? fault : TransitFault{});
      std::ignore = open_checkpoint(checkpoint(), world);
      if (inner.rank() == 0) broadcasts = world.calls(CallKind::broadcast);
    });
    for (auto const& error : thrown) {
      if (fault.effect == Effect::none) {
        EXPECT_EQ(error, nullptr);
      } else {
        EXPECT_THROW(std::rethrow_exception(error), VerifyError) << fault.bit;
      }
    }
    return broadcasts;
  };
  auto const broadcasts = open_with(0, {});
  ASSERT_GT(broadcasts, 0U);
  for (unsigned number = 0; number < broadcasts; ++number) {
    for (std::uint64_t bit = 0; bit < 128; ++bit) {
      open_with(0, {.effect = Effect::flip_given, .call = CallKind::broadcast, .number = number, .bit = bit * 100'003});
      open_with(1, {.effect = Effect::flip_taken, .call = CallKind::broadcast, .number = number, .bit = bit});
    }
  }
}

}  // namespace
}  // namespace rankslice::test
