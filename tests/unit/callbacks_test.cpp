#include "rankslice/callbacks.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "support/communicator_conformance.hpp"
#include "support/thread_world.hpp"

namespace rankslice {
namespace {

using test::Offers;
using test::ThreadWorld;

Implementation threads(std::string const& name, int ranks, ThreadWorld const& world) {
  return {.name = name + std::to_string(ranks),
          .run = [=](RankMain const& rank_main) { test::run_ranks(ranks, rank_main, world); },
          .sends = world.offers != Offers::collectives};
}

std::vector<Implementation> implementations() {
  std::vector<Implementation> all;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    all.push_back(threads("Everything", ranks, {}));
    all.push_back(threads("Messages", ranks, {.offers = Offers::messages}));
    all.push_back(threads("Collectives", ranks, {.offers = Offers::collectives}));
  }
  all.push_back(threads("InPieces", 3, {.change = [](Collectives& group) { group.largest_message = 4'000; }}));
  return all;
}

INSTANTIATE_TEST_SUITE_P(Callbacks, CommunicatorConformance, testing::ValuesIn(implementations()),
                         [](auto const& suite) { return suite.param.name; });

/// What `error` says, if it is a CommError; else nothing.
std::string told(std::exception_ptr const& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (CommError const& found) {
    EXPECT_EQ(found.code, ExitCode::timeout);
    return found.what();
  } catch (std::exception const&) {
  }
  return {};
}

void all_reduce_one(Communicator& world) {
  std::uint64_t one = 1;
  world.all_reduce(std::span(&one, 1), Reduce::sum);
}

/// The functions of a group of two of which only this rank is there; `calls` counts them.
Collectives alone(int& calls) {
  return {.rank = 0,
          .size = 2,
          .kind = "phone",
          .all_reduce = [&calls](auto /*values*/, auto /*op*/) { ++calls; },
          .broadcast =
              [&calls](auto /*bytes*/, int /*root*/) {
                ++calls;
                return WaitFunction();
              }};
}

TEST(Callbacks, SayWhatTheirCallerSaysOfThem) {
  test::run_ranks(3,
                  [](Communicator& world) {
                    EXPECT_EQ(world.kind(), "threads");
                    EXPECT_EQ(world.host(0), "a");
                    EXPECT_EQ(world.host(1), "b");
                    EXPECT_THAT(first_ranks_of_hosts(world), testing::ElementsAre(0, 1));
                    EXPECT_EQ(world.split(world.rank() == 0 ? 0 : 1)->host(0), world.rank() == 0 ? "a" : "b");
                  },
                  {.hosts = {"a", "b", "a"}});
}

TEST(Callbacks, ThrowTheTextOfWhatAFunctionThrewAndThenRefuseAtOnce) {
  bool broken = false;
  int calls = 0;
  ThreadWorld const breaking{.change = [&](Collectives& group) {
    if (group.rank != 0) return;
    group.all_reduce = [&, all_reduce = group.all_reduce](auto values, Reduce op) {
      ++calls;
      if (broken) throw std::runtime_error("connection closed by peer 1");
      all_reduce(values, op);
    };
    group.start_send = [&, start_send = group.start_send](auto bytes, int to, int tag) {
      ++calls;
      return start_send(bytes, to, tag);
    };
  }};
  test::run_ranks(
      2,
      [&](Communicator& world) {
        if (world.rank() == 1) return;
        broken = true;
        auto const expect_refusal = [](auto const& call) {
          try {
            call();
            FAIL() << "nothing thrown";
          } catch (...) {
            EXPECT_EQ(told(std::current_exception()), "threads: all_reduce of 1 numbers: connection closed by peer 1");
          }
        };
        expect_refusal([&] { all_reduce_one(world); });
        broken = false;
        calls = 0;
        std::vector<std::byte> bytes(3);
        expect_refusal([&] { all_reduce_one(world); });
        expect_refusal([&] { world.broadcast(bytes, 0); });
        expect_refusal([&] { std::ignore = world.start_send(bytes, 1); });
        expect_refusal([&] { std::ignore = world.start_receive(bytes, 1); });
        expect_refusal([&] { std::ignore = world.agree({}); });
        expect_refusal([&] { on_every_rank(world, [] {}); });
        expect_refusal([&] { std::ignore = world.gather(bytes, 0); });
        expect_refusal([&] { std::ignore = world.split(0); });
        EXPECT_EQ(calls, 0);
      },
      breaking);
}

TEST(Callbacks, LetRankslicesOwnErrorsPass) {
  int calls = 0;
  auto group = alone(calls);
  group.all_reduce = [](auto /*values*/, auto /*op*/) { throw Interrupted(ExitCode::terminated); };
  EXPECT_THROW(std::ignore = make_communicator(group), Interrupted);
}

TEST(Callbacks, ReportWhatIsNoExceptionToo) {
  int calls = 0;
  auto group = alone(calls);
  group.all_reduce = [](auto /*values*/, auto /*op*/) { throw 42; };
  try {
    std::ignore = make_communicator(group);
    FAIL() << "nothing thrown";
  } catch (...) {
    EXPECT_THAT(told(std::current_exception()), testing::HasSubstr("an exception of unknown type"));
  }
}

TEST(Callbacks, RefuseFunctionsThatMakeNoSenseTogether) {
  int calls = 0;
  auto const refused = [&](auto const& change) {
    auto group = alone(calls);
    change(group);
    EXPECT_THROW(std::ignore = make_communicator(group), UsageError);
  };
  refused([](Collectives& group) { group.rank = 2; });
  refused([](Collectives& group) { group.rank = -1; });
  refused([](Collectives& group) { group.size = 0; });
  refused([](Collectives& group) { group.all_reduce = nullptr; });
  refused([](Collectives& group) { group.broadcast = nullptr; });
  refused([](Collectives& group) { group.all_reduce = nullptr, group.broadcast = nullptr; });
  refused([](Collectives& group) { group.start_receive = [](auto, int, int) { return WaitFunction(); }; });
  refused([](Collectives& group) { group.largest_message = 0; });
  EXPECT_EQ(calls, 0);
}

TEST(Callbacks, NeedNoFunctionsForOneRank) {
  auto const world = make_communicator({});
  EXPECT_EQ(world->size(), 1);
  EXPECT_EQ(world->split(3)->size(), 1);
}

TEST(Callbacks, ReceiveInTheOrderOfTheStartInWhateverOrderTheyAreWaitedFor) {
  test::run_ranks(2, [](Communicator& world) {
    std::vector<std::vector<std::byte>> messages;
    std::vector<std::unique_ptr<PendingTransfer>> transfers;
    for (std::size_t const size : {5U, 600U, 7U}) {
      messages.push_back(world.rank() == 0 ? bytes_of_rank(0, size) : std::vector<std::byte>(size));
    }
    for (auto& message : messages) {
      transfers.push_back(world.rank() == 0 ? world.start_send(message, 1) : world.start_receive(message, 0));
    }
    for (auto const i : {2U, 0U, 1U}) {
      transfers[i]->wait();
      EXPECT_EQ(messages[i], bytes_of_rank(0, messages[i].size()));
    }
  });
}

TEST(Callbacks, KeepTransfersBroadcastsAndPartsApart) {
  ThreadWorld const world_of_messages{.offers = Offers::messages};
  auto const rank_main = [](Communicator& world) {
    auto const part = world.split(0);
    auto const part_of_part = part->split(0);
    auto const other = 1 - world.rank();
    std::vector<std::vector<std::byte>> came;
    std::vector<std::unique_ptr<PendingTransfer>> transfers;
    std::vector<Communicator*> const worlds{&world, part.get(), part_of_part.get()};
    for (std::size_t i = 0; i < worlds.size(); ++i) came.emplace_back(10 + i);
    // Rank 0 receives first, rank 1 sends last, with other calls and the same two ranks in between.
    for (std::size_t i = 0; world.rank() == 0 && i < worlds.size(); ++i) {
      transfers.push_back(worlds[i]->start_receive(came[i], other));
    }
    for (auto* const each : worlds) {
      auto bytes = bytes_of_rank(world.rank(), 33);
      each->broadcast(bytes, 1);
      EXPECT_EQ(bytes, bytes_of_rank(1, 33));
    }
    for (std::size_t i = 0; world.rank() == 1 && i < worlds.size(); ++i) {
      auto const mine = worlds.size() - 1 - i;
      worlds[mine]->start_send(bytes_of_rank(1, 10 + mine), other)->wait();
    }
    transfers.clear();
    for (std::size_t i = 0; world.rank() == 0 && i < worlds.size(); ++i) EXPECT_EQ(came[i], bytes_of_rank(1, 10 + i));
  };
  test::run_ranks(2, rank_main, world_of_messages);
}

TEST(Callbacks, WaitForAForgottenTransferBeforeItsMemoryGoes) {
  int waits = 0;
  ThreadWorld const counting{.change = [&](Collectives& group) {
    if (group.rank != 0) return;
    group.start_send = [&, start_send = group.start_send](auto bytes, int to, int tag) {
      start_send(bytes, to, tag);
      return [&] { ++waits; };
    };
  }};
  test::run_ranks(
      2,
      [&](Communicator& world) {
        if (world.rank() == 1) return;
        std::vector<std::byte> const bytes(10);
        waits = 0;
        world.start_send(bytes, 1).reset();
        EXPECT_EQ(waits, 1);
        auto const forgotten = world.start_send(bytes, 1);
        EXPECT_THROW(world.abort(ExitCode::io, "enough"), CommError);
        EXPECT_THROW(forgotten->wait(), CommError);
        EXPECT_EQ(waits, 1);
      },
      counting);
  EXPECT_EQ(waits, 2);
}

TEST(Callbacks, NeverGiveMoreThanTheLargestMessageToAFunctionAndNeverNothing) {
  std::vector<std::size_t> sizes;  // on rank 0
  ThreadWorld const recording{.change = [&](Collectives& group) {
    group.largest_message = 20;
    if (group.rank != 0) return;
    group.all_reduce = [&, all_reduce = group.all_reduce](std::span<std::int64_t> values, Reduce op) {
      sizes.push_back(values.size_bytes());
      all_reduce(values, op);
    };
    group.broadcast = [&, broadcast = group.broadcast](std::span<std::byte> bytes, int root) {
      sizes.push_back(bytes.size());
      return broadcast(bytes, root);
    };
  }};
  test::run_ranks(
      2,
      [&](Communicator& world) {
        std::vector<std::byte> bytes(45);
        std::vector<std::uint64_t> values(5);
        if (world.rank() == 0) sizes.clear();
        world.broadcast(bytes, 0);
        world.all_reduce(values, Reduce::sum);
        world.broadcast({}, 0);
        world.all_reduce({}, Reduce::sum);
      },
      recording);
  EXPECT_THAT(sizes, testing::ElementsAre(20, 20, 5, 16, 16, 8));
}

TEST(Callbacks, SplitIntoPartsOfTheirOwnOnlyWhereAFunctionCan) {
  ThreadWorld const narrow{.offers = Offers::collectives, .change = [](Collectives& group) { group.split = nullptr; }};
  test::run_ranks(
      3,
      [](Communicator& world) {
        EXPECT_EQ(world.split(7)->size(), 3);
        EXPECT_EQ(world.split(world.rank())->size(), 1);
        EXPECT_THROW(std::ignore = world.split(world.rank() == 0 ? 0 : 1), UsageError);
        EXPECT_EQ(world.agree({}).code, ExitCode::done);
      },
      narrow);
}

TEST(Callbacks, RefuseAPartInWhichThisRankIsAnotherOne) {
  ThreadWorld const wrong{.change = [](Collectives& group) {
    group.split = [split = group.split](auto const& colors) {
      auto part = split(colors);
      part.rank = 0;
      return part;
    };
  }};
  test::run_ranks(
      3, [](Communicator& world) { EXPECT_THROW(std::ignore = world.split(0), UsageError); }, wrong);
}

TEST(Callbacks, GiveUpWaitingForWhatIsNeverDone) {
  auto const world = make_communicator({.timeout = std::chrono::milliseconds(50)});
  EXPECT_THROW(world->wait_until([] { return false; }), CommError);
}

TEST(Callbacks, StopTogetherWhenProgressIsInterruptedOnOneRank) {
  ThreadWorld const interrupted{.change = [](Collectives& group) {
    if (group.rank == 1) group.progress = [] { throw Interrupted(); };
  }};
  test::run_ranks(
      3,
      [](Communicator& world) {
        EXPECT_THROW(on_every_rank(world, [&] { world.progress(); }), Interrupted);
        EXPECT_EQ(world.agree({}).code, ExitCode::done);
      },
      interrupted);
}

TEST(Callbacks, StopTogetherAtTheNextBlockWhenProgressIsInterruptedInAWait) {
  ThreadWorld const interrupted{.change = [](Collectives& group) {
    auto const calls = std::make_shared<int>(0);
    if (group.rank == 1) {
      group.progress = [calls] {
        if (++*calls == 2) throw Interrupted();
      };
    }
  }};
  test::run_ranks(
      3,
      [](Communicator& world) {
        int polls = 0;
        std::uint64_t sum = 1;
        EXPECT_THROW(on_every_rank(world,
                                   [&] {
                                     world.wait_until([&] { return ++polls == 5; });
                                     world.progress();
                                   }),
                     Interrupted);
        EXPECT_EQ(polls, 5);
        world.all_reduce(std::span(&sum, 1), Reduce::sum);
        EXPECT_EQ(sum, 3U);
        on_every_rank(world, [&] { world.progress(); });
      },
      interrupted);
}

TEST(Callbacks, TellTheCallerBeforeTheyGiveUp) {
  std::string heard;
  auto const world = make_communicator({.abort = [&](ExitCode code, std::string const& message) {
    heard = std::to_string(static_cast<int>(code)) + ": " + message;
  }});
  EXPECT_THROW(world->abort(ExitCode::io, "disk gone"), CommError);
  EXPECT_EQ(heard, "74: disk gone");
  EXPECT_THROW(all_reduce_one(*world), CommError);
}

}  // namespace
}  // namespace rankslice
