#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "rankslice/tcp.hpp"

#include "comm/tcp_join.hpp"
#include "comm/tcp_socket.hpp"
#include "core/host_name.hpp"
#include "support/communicator_conformance.hpp"
#include "support/tcp_ranks.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using namespace std::chrono_literals;
using test::run_threads;
using test::TempDir;

/// Ranks that are threads of this process and meet by a file.
class Job {
 public:
  explicit Job(int size, std::chrono::milliseconds timeout = 60s) : size_(size), timeout_(timeout) {}

  [[nodiscard]] std::string file() const { return folder_.file("meet"); }
  [[nodiscard]] std::unique_ptr<Communicator> join(int rank) const {
    return make_tcp_communicator({.rank = rank, .size = size_, .rendezvous = "file:" + file(), .timeout = timeout_});
  }

 private:
  TempDir folder_;
  int size_;
  std::chrono::milliseconds timeout_;
};

using Part = std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>)>;

Implementation ranks_that_are_threads(std::string const& name, int ranks, Part const& part) {
  return {.name = name + std::to_string(ranks), .run = [=](RankMain const& rank_main) {
            Job const job(ranks);
            run_threads(ranks, [&](int rank) { rank_main(*part(job.join(rank))); });
          }};
}

std::vector<Implementation> implementations() {
  // The parts are used when what they were split from is gone.
  auto const world = [](auto all) { return all; };
  auto const odd_and_even = [](auto all) { return all->split(all->rank() % 2); };
  auto const part_of_a_part = [](auto all) { return all->split(all->rank() == 0 ? 1 : 0)->split(5); };
  std::vector<Implementation> all;
  for (int ranks = 1; ranks <= 4; ++ranks) all.push_back(ranks_that_are_threads("World", ranks, world));
  all.push_back(ranks_that_are_threads("OddAndEven", 4, odd_and_even));
  all.push_back(ranks_that_are_threads("PartOfAPart", 3, part_of_a_part));
  return all;
}

INSTANTIATE_TEST_SUITE_P(Tcp, CommunicatorConformance, testing::ValuesIn(implementations()),
                         [](auto const& suite) { return suite.param.name; });

/// A port that was free a moment ago.
std::uint16_t free_port() { return port_of(listen_on(0).get()); }

void expect_to_meet_at(std::string const& rendezvous) {
  run_threads(3, [&](int rank) {
    auto const world = make_tcp_communicator({.rank = rank, .size = 3, .rendezvous = rendezvous, .timeout = 60s});
    EXPECT_EQ(world->rank(), rank);
    EXPECT_EQ(world->size(), 3);
    EXPECT_EQ(world->kind(), "tcp");
    EXPECT_EQ(world->host(2), host_name());
    std::vector<std::uint64_t> one{1};
    world->all_reduce(one, Reduce::sum);
    EXPECT_EQ(one[0], 3U);
  });
}

TEST(TcpCommunicator, MeetsAtAHostAndPort) { expect_to_meet_at("127.0.0.1:" + std::to_string(free_port())); }

TEST(TcpCommunicator, MeetsAtTheNameOfAHost) { expect_to_meet_at("localhost:" + std::to_string(free_port())); }

TEST(TcpCommunicator, MeetsOverIpv6) {
  std::string why;
  auto const listener = listen_on(0);
  auto const loopback = resolve("::1", port_of(listener.get()));
  if (loopback.empty() || !connect_to(loopback.front(), 1s, why).valid()) GTEST_SKIP() << "no IPv6 here: " << why;
  expect_to_meet_at("[::1]:" + std::to_string(free_port()));
}

TEST(TcpCommunicator, RemovesTheFileOfTheRendezvousAtTheEnd) {
  Job const job(2);
  run_threads(2, [&](int rank) {
    auto const world = job.join(rank);
    EXPECT_TRUE(std::filesystem::exists(job.file()));
    barrier(*world);
  });
  EXPECT_FALSE(std::filesystem::exists(job.file()));
}

TEST(TcpCommunicator, WaitsForRanksThatComeLate) {
  for (int late = 0; late < 3; ++late) {
    Job const job(3);
    run_threads(3, [&](int rank) {
      if (rank == late) std::this_thread::sleep_for(300ms);
      barrier(*job.join(rank));
    });
  }
}

TEST(TcpCommunicator, AnOlderFileDoesNotMislead) {
  // One names a port where nobody listens, one a port where another run is, with another token.
  Job const other(1);
  auto const running = other.join(0);
  auto const place = read_meeting_place(other.file());
  ASSERT_TRUE(place);
  for (auto const port : {free_port(), place->port}) {
    Job const job(2);
    PublishedPlace const old(job.file(), {.token = "old", .host = host_name(), .port = port, .addresses = {}});
    run_threads(2, [&](int rank) {
      if (rank == 0) std::this_thread::sleep_for(300ms);  // so that the other reads the old file first
      barrier(*job.join(rank));
    });
  }
}

TEST(TcpCommunicator, CollectivesAndTransfersDoNotMeet) {
  Job const job(2);
  run_threads(2, [&](int rank) {
    auto const world = job.join(rank);
    std::vector<std::byte> sent(10, std::byte{1});
    std::vector<std::byte> shared(10, std::byte{2});
    std::vector<std::byte> received(10);
    if (rank == 0) {
      auto const transfer = world->start_send(sent, 1);
      world->broadcast(shared, 0);
    } else {
      shared.assign(10, std::byte{0});
      world->broadcast(shared, 0);
      world->start_receive(received, 0)->wait();
      EXPECT_EQ(received, sent);
    }
    EXPECT_EQ(shared, std::vector<std::byte>(10, std::byte{2}));
  });
}

TEST(TcpCommunicator, APartGoesOnWhenRank0HasLeft) {
  Job const job(3);
  std::atomic<bool> rank_0_left = false;
  run_threads(3, [&](int rank) {
    auto part = job.join(rank)->split(rank == 0 ? 0 : 1);
    if (rank == 0) {
      // The others cannot see when its link is closed; that its end begins must do.
      rank_0_left = true;
      return;
    }
    while (!rank_0_left) std::this_thread::yield();
    std::this_thread::sleep_for(100ms);
    for (int i = 0; i < 50; ++i) barrier(*part);
  });
}

TEST(TcpCommunicator, HoldsNoMoreThanAWindowForARankThatDoesNotReceive) {
  Job const job(2);
  auto const message = bytes_of_rank(0, 3'000'000);
  run_threads(2, [&](int rank) {
    if (rank == 0) {
      auto const world = job.join(0);
      auto const transfer = world->start_send(message, 1);
      transfer->wait();
      return;
    }
    // Rank 1 is played by hand: it takes frames and gives no credit, until nothing more comes.
    while (!std::filesystem::exists(job.file())) std::this_thread::sleep_for(1ms);
    auto connection =
        join_hub(parse_rendezvous("file:" + job.file()), {.rank = 1, .size = 2, .host = "h", .token = {}}, 60s);
    auto const socket = connection.socket.get();
    std::vector<std::byte> received;
    auto const take = [&](std::chrono::milliseconds patience) {
      wait_for_socket(socket, false, patience);
      std::size_t before = received.size();
      while (auto const frame = connection.reader.next(socket)) {
        if (frame->header.kind != FrameKind::data) continue;
        received.insert(received.end(), frame->payload.begin(), frame->payload.end());
      }
      return received.size() > before;
    };
    while (received.empty()) take(1s);
    while (take(300ms)) {
    }
    EXPECT_LT(received.size(), 400'000U);
    connection.writer.put({.kind = FrameKind::credit, .peer = 0, .total = 4'000'000}, {});
    connection.writer.flush(socket);
    while (received.size() < message.size()) take(1s);
    EXPECT_EQ(received, message);
    connection.writer.put({.kind = FrameKind::goodbye}, {});
    connection.writer.flush(socket);
  });
}

TEST(TcpCommunicator, RefusesOptionsThatMakeNoSense) {
  TcpOptions const good{.rank = 0, .size = 2, .rendezvous = "h:1", .timeout = 1s};
  auto bad = good;
  bad.rank = 2;
  EXPECT_THROW(make_tcp_communicator(bad), UsageError);
  bad.rank = -1;
  EXPECT_THROW(make_tcp_communicator(bad), UsageError);
  bad = good;
  bad.size = 0;
  EXPECT_THROW(make_tcp_communicator(bad), UsageError);
  bad = good;
  bad.timeout = 0ms;
  EXPECT_THROW(make_tcp_communicator(bad), UsageError);
  bad = good;
  bad.rendezvous = "h";
  EXPECT_THROW(make_tcp_communicator(bad), UsageError);
}

TEST(TcpCommunicator, RefusesANegativeColourOnEveryRank) {
  Job const job(2);
  run_threads(2, [&](int rank) {
    auto const world = job.join(rank);
    EXPECT_THROW(std::ignore = world->split(rank == 0 ? -1 : 0), UsageError);
  });
}

}  // namespace
}  // namespace rankslice
