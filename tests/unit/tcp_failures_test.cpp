// Ranks that never come, come twice, die, fall silent or give up, and strangers: every other rank hears why. Where a
// deadline must not be what ends the wait, it lies beyond the patience of the test's runner.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "rankslice/tcp.hpp"

#include "comm/tcp_join.hpp"
#include "comm/tcp_socket.hpp"
#include "core/host_name.hpp"
#include "support/tcp_ranks.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using namespace std::chrono_literals;
using test::exceptions_of;
using test::message_of;
using testing::HasSubstr;
using testing::MatchesRegex;

constexpr auto kNever = std::chrono::milliseconds(1h);

class TcpFailures : public testing::Test {
 protected:
  [[nodiscard]] std::string file() const { return folder_.file("meet"); }
  [[nodiscard]] std::unique_ptr<Communicator> join(int rank, int size, std::chrono::milliseconds timeout) const {
    return make_tcp_communicator({.rank = rank, .size = size, .rendezvous = "file:" + file(), .timeout = timeout});
  }
  /// A rank that is played by hand, and has nothing but its connection.
  [[nodiscard]] TcpConnection connect(int rank, int size) const {
    return join_hub(parse_rendezvous("file:" + file()), {.rank = rank, .size = size, .host = "h1", .token = {}},
                    kNever);
  }
  /// Where rank 0 listens.
  [[nodiscard]] UniqueSocket connect_as_stranger() const {
    while (!std::filesystem::exists(file())) std::this_thread::sleep_for(1ms);
    std::string why;
    auto const port = read_meeting_place(file())->port;
    auto socket = connect_to(resolve("127.0.0.1", port).at(0), 10s, why);
    EXPECT_TRUE(socket.valid()) << why;
    return socket;
  }

  std::string host = host_name();

 private:
  test::TempDir folder_;
};

void all_reduce_one(Communicator& world) {
  std::vector<std::uint64_t> one{1};
  world.all_reduce(one, Reduce::sum);
}

TEST_F(TcpFailures, RanksThatNeverComeAreNamedToThoseWhoCame) {
  auto const thrown = exceptions_of(5, [&](int rank) {
    if (rank == 0 || rank == 3) std::ignore = join(rank, 5, 700ms);
  });
  auto const expected = "rank(s) 1-2, 4 did not come to file:" + file() + " within 0.7 s";
  EXPECT_EQ(message_of(thrown[0], ExitCode::timeout), expected);
  EXPECT_EQ(message_of(thrown[3], ExitCode::timeout), expected);
}

TEST_F(TcpFailures, WithoutRank0TheOthersSayWhereTheyLookedForIt) {
  auto const thrown = exceptions_of(1, [&](int) { std::ignore = join(1, 2, 200ms); });
  EXPECT_EQ(message_of(thrown[0], ExitCode::timeout),
            "no word from rank 0 at file:" + file() + " within 0.2 s: no such file");
  auto const refused = exceptions_of(1, [&](int) {
    auto const port = std::to_string(port_of(listen_on(0).get()));
    std::ignore = make_tcp_communicator({.rank = 1, .size = 2, .rendezvous = "127.0.0.1:" + port, .timeout = 200ms});
  });
  EXPECT_THAT(message_of(refused[0], ExitCode::timeout),
              MatchesRegex("no word from rank 0 at 127.0.0.1:[0-9]+ within 0.2 s: Connection refused"));
}

TEST_F(TcpFailures, SomethingElseThatListensIsToldFromRank0) {
  auto const listener = listen_on(0);
  auto const thrown = exceptions_of(1, [&](int) {
    std::ignore = make_tcp_communicator(
        {.rank = 1, .size = 2, .rendezvous = "127.0.0.1:" + std::to_string(port_of(listener.get())), .timeout = 200ms});
  });
  EXPECT_THAT(message_of(thrown[0], ExitCode::timeout), HasSubstr("does not answer as rankslice does"));
}

TEST_F(TcpFailures, APortInUseIsRefusedWithAdvice) {
  auto const listener = listen_on(0);
  auto const port = std::to_string(port_of(listener.get()));
  auto const thrown = exceptions_of(1, [&](int) {
    std::ignore = make_tcp_communicator({.rank = 0, .size = 2, .rendezvous = "localhost:" + port, .timeout = kNever});
  });
  EXPECT_EQ(message_of(thrown[0], ExitCode::bad_launch), "port " + port + " of " + host +
                                                             " is in use: rankslice needs one of its own, not " +
                                                             "the one that torchrun's store holds (MASTER_PORT)");
}

TEST_F(TcpFailures, ASecondProcessOfTheSameRankIsRefusedAndTheJobGoesOn) {
  std::latch refused(1);
  auto const thrown = exceptions_of(3, [&](int i) {
    if (i == 2) {
      auto const first = connect(1, 2);  // its hello is there before the next
      auto const second = exceptions_of(1, [&](int) { std::ignore = join(1, 2, kNever); });
      EXPECT_EQ(message_of(second[0], ExitCode::bad_launch), "two processes were started as rank 1: on h1 and " + host);
      refused.count_down();
      auto writer = first.writer;
      writer.put({.kind = FrameKind::goodbye}, {});
      writer.flush(first.socket.get());
    } else if (i == 0) {
      auto const world = join(0, 2, kNever);
      refused.wait();
    }
  });
  for (auto const& error : thrown) EXPECT_FALSE(error);
}

TEST_F(TcpFailures, ARankOfAJobOfAnotherSizeIsRefusedAndSaidAtTheDeadline) {
  auto const thrown = exceptions_of(2, [&](int rank) { std::ignore = join(rank, rank == 0 ? 2 : 8, 700ms); });
  auto const refusal = "rank 1 (host " + host + ") was started as one of 8 ranks, rank 0 as one of 2";
  EXPECT_EQ(message_of(thrown[1], ExitCode::bad_launch), refusal);
  EXPECT_EQ(message_of(thrown[0], ExitCode::timeout),
            "rank(s) 1 did not come to file:" + file() + " within 0.7 s; refused: " + refusal);
}

TEST_F(TcpFailures, StrangersDoNotDisturb) {
  auto const thrown = exceptions_of(3, [&](int rank) {
    if (rank == 2) {
      std::string const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
      FrameHeader const huge{.kind = FrameKind::hello, .size = 0xfffffff0U};
      FrameHeader const early{.kind = FrameKind::data, .peer = 0, .size = 0};
      auto const silent = connect_as_stranger();
      for (auto const bytes : {std::as_bytes(std::span(request)), std::as_bytes(std::span(&huge, 1)),
                               std::as_bytes(std::span(&early, 1))}) {
        auto const socket = connect_as_stranger();
        EXPECT_EQ(send_some(socket.get(), bytes).bytes, bytes.size());
        std::array<std::byte, 1> answer{};
        while (!receive_some(socket.get(), answer).ended) wait_for_socket(socket.get(), false, 100ms);
      }
    }
    auto const world = join(rank, 3, kNever);
    barrier(*world);
  });
  for (auto const& error : thrown) EXPECT_EQ(message_of(error, ExitCode::done), "(nothing was thrown)");
}

TEST_F(TcpFailures, AConnectionThatClosesIsKnownAtOnceAndByName) {
  auto const thrown = exceptions_of(3, [&](int rank) {
    if (rank == 1) {
      std::ignore = connect(1, 3);  // and gone
    } else {
      auto const world = join(rank, 3, kNever);
      all_reduce_one(*world);
    }
  });
  EXPECT_EQ(message_of(thrown[0], ExitCode::timeout), "lost rank 1 (host h1): its connection was closed");
  EXPECT_EQ(message_of(thrown[2], ExitCode::timeout), "lost rank 1 (host h1): its connection was closed");
}

TEST_F(TcpFailures, ARankThatIsLostEndsStepsAgreementsAndPendingTransfersToo) {
  auto const thrown = exceptions_of(4, [&](int rank) {
    if (rank == 1) {
      std::ignore = connect(1, 4);
      return;
    }
    auto const world = join(rank, 4, kNever);
    std::vector<std::byte> bytes(1000);
    auto const transfer = world->start_receive(bytes, 1);
    if (rank == 0) std::ignore = world->agree({});
    if (rank == 2) transfer->wait();
    while (rank == 3) world->progress();
  });
  for (auto const rank : {0U, 2U, 3U}) {
    EXPECT_EQ(message_of(thrown[rank], ExitCode::timeout), "lost rank 1 (host h1): its connection was closed");
  }
}

TEST_F(TcpFailures, ARankThatSendsNonsenseIsLost) {
  auto const thrown = exceptions_of(2, [&](int rank) {
    if (rank == 1) {
      auto const connection = connect(1, 2);
      std::array<std::byte, 64> const nonsense{};
      EXPECT_EQ(send_some(connection.socket.get(), nonsense).bytes, nonsense.size());
      std::array<std::byte, 4096> rest{};
      while (!receive_some(connection.socket.get(), rest).ended) std::this_thread::sleep_for(1ms);
    } else {
      auto const world = join(rank, 2, kNever);
      all_reduce_one(*world);
    }
  });
  EXPECT_EQ(message_of(thrown[0], ExitCode::timeout),
            "lost rank 1 (host h1): what came over a connection is not rankslice's");
}

TEST_F(TcpFailures, OneRanksAbortEndsTheWaitOfAllOthers) {
  for (int giving_up = 0; giving_up < 3; ++giving_up) {
    auto const thrown = exceptions_of(3, [&](int rank) {
      auto const world = join(rank, 3, kNever);
      all_reduce_one(*world);
      if (rank == giving_up) world->abort(ExitCode::unavailable, "no GPU");
      all_reduce_one(*world);
    });
    for (auto const& error : thrown) EXPECT_EQ(message_of(error, ExitCode::unavailable), "no GPU");
  }
}

TEST_F(TcpFailures, AfterAFailureEveryCallSaysSo) {
  auto const thrown = exceptions_of(2, [&](int rank) {
    auto const world = join(rank, 2, kNever);
    EXPECT_THROW(
        {
          if (rank == 1) world->abort(ExitCode::timeout, "why");
          all_reduce_one(*world);
        },
        CommError);
    std::vector<std::byte> bytes(1);
    EXPECT_THROW(std::ignore = world->start_send(bytes, 1 - rank), CommError);
    EXPECT_THROW(std::ignore = world->agree({}), CommError);
    EXPECT_THROW(world->broadcast(bytes, rank), CommError);
    std::ignore = world->split(0);
  });
  for (auto const& error : thrown) EXPECT_EQ(message_of(error, ExitCode::timeout), "why");
}

TEST_F(TcpFailures, ARankThatUnwindsAloneIsNamed) {
  for (int alone = 0; alone < 3; ++alone) {
    auto const thrown = exceptions_of(3, [&](int rank) {
      auto const world = join(rank, 3, kNever);
      barrier(*world);
      if (rank == alone) throw std::runtime_error("mine");
      all_reduce_one(*world);
    });
    for (int rank = 0; rank < 3; ++rank) {
      auto const message = message_of(thrown[static_cast<std::size_t>(rank)], ExitCode::timeout);
      if (rank == alone) {
        EXPECT_EQ(message, "(not a CommError) mine");
      } else {
        EXPECT_EQ(message, "rank " + std::to_string(alone) + " (host " + host + ") left after an error of its own");
      }
    }
  }
}

TEST_F(TcpFailures, AFailureThatTheRanksAgreedOnIsNoneOfTheConnection) {
  auto const thrown = exceptions_of(3, [&](int rank) {
    auto const world = join(rank, 3, kNever);
    on_every_rank(*world, [&] {
      if (rank == 1) throw CommError(ExitCode::unavailable, "agreed");
    });
  });
  for (auto const& error : thrown)
    EXPECT_NE(message_of(error, ExitCode::unavailable).find("agreed"), std::string::npos);
}

TEST_F(TcpFailures, ASilentRankIsNamedAtTheDeadlineAndHearsOfIt) {
  std::atomic<int> ended = 0;
  auto const thrown = exceptions_of(3, [&](int rank) {
    auto const world = join(rank, 3, 1s);
    try {
      on_every_rank(*world, [&] {
        while (rank == 2 && ended < 2) std::this_thread::sleep_for(10ms);  // stuck
      });
    } catch (...) {
      ++ended;
      throw;
    }
  });
  for (auto const& error : thrown) {
    EXPECT_EQ(message_of(error, ExitCode::timeout), "no answer from rank(s) 2 (host " + host + ") within 1.0 s");
  }
}

TEST_F(TcpFailures, ASilentRank0IsNamedByTheOthers) {
  std::atomic<int> ended = 0;
  auto const thrown = exceptions_of(3, [&](int rank) {
    auto const world = join(rank, 3, 500ms);
    if (rank == 0) {
      while (ended < 2) std::this_thread::sleep_for(10ms);
    }
    try {
      all_reduce_one(*world);
    } catch (...) {
      ++ended;
      throw;
    }
  });
  for (auto const& error : thrown) {
    EXPECT_EQ(message_of(error, ExitCode::timeout), "no answer from rank(s) 0 (host " + host + ") within 0.5 s");
  }
}

TEST_F(TcpFailures, AWaitForOneWhoLeftFailsAtOnce) {
  std::vector<std::byte> bytes(1'000'000);
  std::vector<std::function<void(Communicator&)>> const waits{
      [](Communicator& world) { std::ignore = world.agree({}); },
      [](Communicator& world) { all_reduce_one(world); },
      [&](Communicator& world) { world.start_receive(bytes, 1)->wait(); },
      [&](Communicator& world) { world.start_send(bytes, 1)->wait(); },
  };
  for (auto const& wait : waits) {
    auto const thrown = exceptions_of(2, [&](int rank) {
      auto const world = join(rank, 2, kNever);
      if (rank == 0) wait(*world);
    });
    EXPECT_EQ(message_of(thrown[0], ExitCode::timeout), "rank 1 (host " + host + ") left while others wait for it");
    EXPECT_FALSE(thrown[1]);
  }
}

TEST_F(TcpFailures, WhatARankSentBeforeItLeftStillComes) {
  std::vector<std::byte> const bytes(100'000, std::byte{7});
  std::vector<std::byte> received(bytes.size());
  auto const thrown = exceptions_of(2, [&](int rank) {
    auto const world = join(rank, 2, kNever);
    if (rank == 1) return world->start_send(bytes, 0)->wait();
    std::this_thread::sleep_for(200ms);  // for it to have left, mostly
    world->start_receive(received, 1)->wait();
  });
  for (auto const& error : thrown) EXPECT_FALSE(error);
  EXPECT_EQ(received, bytes);
}

TEST_F(TcpFailures, DifferentSizesOnTheTwoSidesAreFound) {
  auto const thrown = exceptions_of(2, [&](int rank) {
    auto const world = join(rank, 2, kNever);
    std::vector<std::byte> bytes(rank == 0 ? 100 : 99);
    if (rank == 0) world->start_send(bytes, 1)->wait();
    if (rank == 1) world->start_receive(bytes, 0)->wait();
    barrier(*world);
  });
  for (auto const& error : thrown) {
    EXPECT_EQ(message_of(error, ExitCode::unexpected),
              "rank 0 sent 100 bytes where rank 1 expected 99: the ranks do not make the same calls");
  }
}

TEST_F(TcpFailures, Rank0DoesNotWaitForeverForOneThatNeverLeaves) {
  // Rank 1 stays, and says nothing more.
  std::latch done(1);
  auto const thrown = exceptions_of(2, [&](int rank) {
    if (rank == 0) {
      std::ignore = join(0, 2, 300ms);
      done.count_down();
    } else {
      auto const connection = connect(1, 2);
      done.wait();
    }
  });
  for (auto const& error : thrown) EXPECT_FALSE(error);
}

TEST_F(TcpFailures, TooFewFileDescriptorsAreSaid) {
  auto const thrown = exceptions_of(1, [&](int) {
    std::jthread const stranger([&] {
      while (!std::filesystem::exists(file())) std::this_thread::sleep_for(1ms);
      auto const address = resolve("127.0.0.1", read_meeting_place(file())->port).at(0);
      // One more, for the stranger's end, and none for the other.
      auto const next = ::dup(STDERR_FILENO);
      rlimit before{};
      ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
      rlimit const few{.rlim_cur = static_cast<rlim_t>(next) + 1, .rlim_max = before.rlim_max};
      ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
      ::close(next);
      std::string why;
      auto const socket = connect_to(address, 10s, why);
      if (socket.valid()) wait_for_socket(socket.get(), false, 10s);  // until the hub is gone, if it is not yet
      ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    });
    std::ignore = join(0, 2, kNever);
  });
  EXPECT_EQ(message_of(thrown[0], ExitCode::bad_launch),
            "rank 0 (host " + host + ") cannot take all connections of 2 ranks: Too many open files (ulimit -n)");
}

/// Ranks that are processes of their own. They end with 0 when all was well, with 75 when `expected` was thrown.
std::vector<int> statuses_of_processes(int ranks, std::string const& expected, test::RankBody const& body) {
  std::vector<pid_t> processes;
  for (int rank = 0; rank < ranks; ++rank) {
    auto const process = ::fork();
    if (process == 0) {
      auto const thrown = exceptions_of(1, [&](int) { body(rank); });
      if (!thrown[0]) ::_exit(0);
      auto const message = message_of(thrown[0], ExitCode::timeout);
      if (message != expected) std::fprintf(stderr, "rank %d: %s\n", rank, message.c_str());
      ::_exit(message == expected ? 75 : 1);
    }
    processes.push_back(process);
  }
  std::vector<int> statuses;
  for (auto const process : processes) {
    int status = 0;
    EXPECT_EQ(::waitpid(process, &status, 0), process);
    statuses.push_back(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
  }
  return statuses;
}

TEST_F(TcpFailures, AKilledProcessIsKnownAtOnce) {
  auto const expected = "lost rank 2 (host " + host + "): its connection was closed";
  auto const statuses = statuses_of_processes(3, expected, [&](int rank) {
    auto const world = join(rank, 3, kNever);
    barrier(*world);
    if (rank == 2) ::raise(SIGKILL);
    all_reduce_one(*world);
  });
  EXPECT_THAT(statuses, testing::ElementsAre(75, 75, 128 + SIGKILL));
}

TEST_F(TcpFailures, AKilledRank0IsKnownAtOnceAndAnotherRunMayFollow) {
  auto const expected = "lost rank 0 (host " + host + "), through which all ranks speak: its connection was closed";
  auto const statuses = statuses_of_processes(3, expected, [&](int rank) {
    auto const world = join(rank, 3, kNever);
    barrier(*world);
    if (rank == 0) ::raise(SIGKILL);
    all_reduce_one(*world);
  });
  EXPECT_THAT(statuses, testing::ElementsAre(128 + SIGKILL, 75, 75));
  EXPECT_TRUE(std::filesystem::exists(file()));  // nobody could remove it
  auto const again = statuses_of_processes(3, "", [&](int rank) { barrier(*join(rank, 3, kNever)); });
  EXPECT_THAT(again, testing::Each(0));
}

}  // namespace
}  // namespace rankslice
