// Worlds for tests: ranks that are threads, and communicators that misbehave as they are told.

#include "support/thread_world.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "support/misbehaving_communicator.hpp"

namespace rankslice::test {
namespace {

using Effect = TransitFault::Effect;
using Bytes = std::vector<std::byte>;
using Numbers = std::vector<std::uint64_t>;
using testing::ElementsAre;

void all_reduce_one(Communicator& world) {
  std::uint64_t one = 1;
  world.all_reduce(std::span(&one, 1), Reduce::sum);
}

TEST(ThreadWorld, ARankThatLeavesAloneIsNotWaitedFor) {
  auto const began = std::chrono::steady_clock::now();
  auto const thrown = exceptions_of_ranks(4,
                                          [](Communicator& world) {
                                            if (world.rank() == 2) throw std::out_of_range("this one");
                                            all_reduce_one(world);
                                          },
                                          {.timeout = std::chrono::hours(1)});
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::minutes(5));
  ASSERT_EQ(thrown.size(), 4U);
  EXPECT_THROW(std::rethrow_exception(thrown[2]), std::out_of_range);
  for (auto const other : {0U, 1U, 3U}) EXPECT_THROW(std::rethrow_exception(thrown[other]), CommError);
}

TEST(ThreadWorld, RethrowsWhatWasThrownFirst) {
  EXPECT_THROW(run_ranks(3,
                         [](Communicator& world) {
                           if (world.rank() == 2) throw std::out_of_range("this one");
                           all_reduce_one(world);
                         }),
               std::out_of_range);
}

TEST(ThreadWorld, GivesUpOnARankThatDoesNotAnswer) {
  auto const thrown = exceptions_of_ranks(2,
                                          [](Communicator& world) {
                                            if (world.rank() == 0) return all_reduce_one(world);
                                            std::this_thread::sleep_for(std::chrono::milliseconds(500));
                                            all_reduce_one(world);
                                          },
                                          {.timeout = std::chrono::milliseconds(50)});
  EXPECT_THROW(std::rethrow_exception(thrown[0]), CommError);
}

/// `step` on two ranks; `fault` strikes rank 1.
void with_fault(TransitFault const& fault, std::function<void(Communicator&)> const& step) {
  run_ranks(2, [&](Communicator& inner) {
    MisbehavingCommunicator world(inner, inner.rank() == 1 ? fault : TransitFault{});
    step(world);
    EXPECT_EQ(world.struck(), inner.rank() == 1);
  });
}

Bytes bytes(std::vector<int> const& values) {
  Bytes made;
  for (auto const value : values) made.push_back(static_cast<std::byte>(value));
  return made;
}

TEST(MisbehavingCommunicator, FlipsABitOfASumForAllOrForOne) {
  auto const sums = [](Communicator& world) {
    Numbers first{1, 1}, second{1, 1};
    world.all_reduce(first, Reduce::sum);
    world.all_reduce(second, Reduce::sum);
    EXPECT_THAT(first, ElementsAre(2, 2));
    return second;
  };
  TransitFault fault{.effect = Effect::flip_given, .call = CallKind::all_reduce, .number = 1, .bit = 64 + 3};
  with_fault(fault, [&](Communicator& world) { EXPECT_THAT(sums(world), ElementsAre(2, 2 + 8)); });
  fault.effect = Effect::flip_taken;
  with_fault(fault, [&](Communicator& world) { EXPECT_THAT(sums(world), ElementsAre(2, world.rank() == 1 ? 10 : 2)); });
}

TEST(MisbehavingCommunicator, FlipsABitOfABroadcastForTheOthersOrForItself) {
  for (int const root : {0, 1}) {
    with_fault({.effect = root == 1 ? Effect::flip_given : Effect::flip_taken, .call = CallKind::broadcast, .bit = 9},
               [&](Communicator& world) {
                 auto shared = world.rank() == root ? bytes({7, 7}) : bytes({0, 0});
                 world.broadcast(shared, root);
                 EXPECT_EQ(shared, world.rank() == root ? bytes({7, 7}) : bytes({7, 5}));
               });
  }
}

TEST(MisbehavingCommunicator, FlipsLosesAndRepeatsWhatItReceives) {
  auto const received = [](Communicator& world) {
    Bytes came = bytes({9, 9});
    for (auto const& message : {bytes({1, 2}), bytes({3, 4})}) {
      came = bytes({9, 9});
      world.rank() == 0 ? world.start_send(message, 1)->wait() : world.start_receive(came, 0)->wait();
    }
    return came;
  };
  auto const expect = [&](Effect effect, Bytes const& expected) {
    with_fault({.effect = effect, .call = CallKind::receive, .number = 1, .bit = 0}, [&](Communicator& world) {
      auto const came = received(world);
      if (world.rank() == 0) return;
      EXPECT_EQ(came, expected);
    });
  };
  expect(Effect::flip_taken, bytes({2, 4}));
  expect(Effect::lose_taken, bytes({9, 9}));
  expect(Effect::take_last, bytes({1, 2}));
}

TEST(MisbehavingCommunicator, FlipsABitOfWhatItSendsAndKeepsItsOwn) {
  with_fault({.effect = Effect::flip_given, .call = CallKind::send, .bit = 0}, [](Communicator& world) {
    auto mine = bytes({1});
    world.rank() == 1 ? world.start_send(mine, 0)->wait() : world.start_receive(mine, 1)->wait();
    EXPECT_EQ(mine, world.rank() == 1 ? bytes({1}) : bytes({0}));
  });
}

TEST(MisbehavingCommunicator, FlipsABitOfWhatIsGathered) {
  for (int const root : {0, 1}) {
    with_fault({.effect = root == 1 ? Effect::flip_taken : Effect::flip_given, .call = CallKind::gather, .bit = 1},
               [&](Communicator& world) {
                 auto const everyone = world.gather(bytes({4}), root);
                 if (world.rank() != root) return;
                 EXPECT_EQ(everyone[static_cast<std::size_t>(1 - root)], bytes({6}));
               });
  }
}

TEST(MisbehavingCommunicator, MisbehavesInPartsToo) {
  with_fault({.effect = Effect::flip_taken, .call = CallKind::all_reduce, .bit = 0}, [](Communicator& world) {
    Numbers sum{1};
    world.split(0)->all_reduce(sum, Reduce::sum);
    EXPECT_THAT(sum, ElementsAre(world.rank() == 1 ? 3 : 2));
  });
}

TEST(MisbehavingCommunicator, IsLateAndAllWait) {
  with_fault({.effect = Effect::delay, .call = CallKind::agree, .time = std::chrono::milliseconds(100)},
             [](Communicator& world) { EXPECT_EQ(world.agree({}).code, ExitCode::done); });
}

TEST(MisbehavingCommunicator, FailsOrNeverComesAndTheOthersGiveUp) {
  for (auto const effect : {Effect::fail, Effect::vanish}) {
    auto const thrown = exceptions_of_ranks(2, [&](Communicator& inner) {
      MisbehavingCommunicator world(inner,
                                    {.effect = inner.rank() == 1 ? effect : Effect::none, .call = CallKind::agree});
      std::ignore = world.agree({});
    });
    EXPECT_THROW(std::rethrow_exception(thrown[0]), CommError);
    EXPECT_THROW(std::rethrow_exception(thrown[1]), std::runtime_error);
  }
}

}  // namespace
}  // namespace rankslice::test
