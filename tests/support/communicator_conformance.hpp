#pragma once

// What every Communicator must do, whatever its size. A test program instantiates CommunicatorConformance with the
// implementations that it can make.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice {

/// What a test does on one rank.
using RankMain = std::function<void(Communicator&)>;

struct Implementation {
  std::string name;
  std::function<void(RankMain const&)> run;  ///< Runs it on every rank of a new communicator, or on this process's.
  bool sends = true;                         ///< Whether bytes go between two ranks at all.
};

/// Where this process is one rank: `make` gives its communicator.
inline Implementation one_rank_of(std::string name, std::function<std::unique_ptr<Communicator>()> const& make) {
  return {std::move(name), [make](RankMain const& rank_main) { rank_main(*make()); }};
}

inline void PrintTo(Implementation const& implementation, std::ostream* out) { *out << implementation.name; }

/// `size` bytes that differ from rank to rank and from place to place.
inline std::vector<std::byte> bytes_of_rank(int rank, std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>((i * 11 + i / 251 + static_cast<std::size_t>(rank) * 37 + 1) % 256);
  }
  return bytes;
}

inline std::uint64_t ranks(Communicator const& world) { return static_cast<std::uint64_t>(world.size()); }
inline std::uint64_t me(Communicator const& world) { return static_cast<std::uint64_t>(world.rank()); }

class CommunicatorConformance : public testing::TestWithParam<Implementation> {};

inline bool can_send() { return CommunicatorConformance::GetParam().sends; }

/// A test whose body runs on every rank, with its `world`: ranks may be threads of one process.
#define COMMUNICATOR_TEST(name)                                          \
  inline void check##name(Communicator& world);                          \
  TEST_P(CommunicatorConformance, name) { GetParam().run(check##name); } \
  inline void check##name(Communicator& world)

COMMUNICATOR_TEST(RanksAreNumberedFromZero) {
  ASSERT_GE(world.rank(), 0);
  ASSERT_LT(world.rank(), world.size());
  std::vector<std::uint64_t> present(ranks(world), 0);
  present[me(world)] = 1;
  world.all_reduce(present, Reduce::sum);
  EXPECT_THAT(present, testing::Each(1));
}

COMMUNICATOR_TEST(SumsElementWise) {
  std::vector<std::uint64_t> values{me(world), 10 * me(world), 7};
  world.all_reduce(values, Reduce::sum);
  auto const sum_of_ranks = ranks(world) * (ranks(world) - 1) / 2;
  EXPECT_THAT(values, testing::ElementsAre(sum_of_ranks, 10 * sum_of_ranks, 7 * ranks(world)));
}

COMMUNICATOR_TEST(SumsModuloTwoToThe64) {
  // Every rank but the first adds 2^64 - 1, which is -1.
  std::vector<std::uint64_t> values{me(world) == 0 ? 100 : std::numeric_limits<std::uint64_t>::max()};
  world.all_reduce(values, Reduce::sum);
  EXPECT_EQ(values[0], 100 - (ranks(world) - 1));
}

COMMUNICATOR_TEST(FindsMinimaAndMaximaAsUnsignedNumbers) {
  constexpr auto kHuge = std::uint64_t{1} << 63;
  std::vector<std::uint64_t> low{kHuge + me(world), 5 + me(world)};
  auto high = low;
  world.all_reduce(low, Reduce::min);
  world.all_reduce(high, Reduce::max);
  EXPECT_THAT(low, testing::ElementsAre(kHuge, 5));
  EXPECT_THAT(high, testing::ElementsAre(kHuge + ranks(world) - 1, 5 + ranks(world) - 1));
}

COMMUNICATOR_TEST(ReducesNothingAtAll) {
  std::vector<std::uint64_t> none;
  world.all_reduce(none, Reduce::sum);
  EXPECT_TRUE(none.empty());
}

COMMUNICATOR_TEST(BroadcastsFromEveryRoot) {
  for (int root = 0; root < world.size(); ++root) {
    for (std::size_t const size : {0U, 1U, 7U, 4096U, 1'000'003U}) {
      auto bytes = bytes_of_rank(world.rank(), size);
      world.broadcast(bytes, root);
      ASSERT_EQ(bytes, bytes_of_rank(root, size)) << "root " << root << ", " << size << " bytes";
    }
  }
}

COMMUNICATOR_TEST(BroadcastsVectorsOfASizeThatOnlyTheRootKnows) {
  for (int root = 0; root < world.size(); ++root) {
    for (std::size_t const size : {0U, 1U, 70'000U}) {
      auto bytes = bytes_of_rank(world.rank(), world.rank() == root ? size : 3);
      broadcast_vector(world, bytes, root);
      ASSERT_EQ(bytes, bytes_of_rank(root, size)) << "root " << root << ", " << size << " bytes";
    }
  }
}

COMMUNICATOR_TEST(GathersDifferentSizesByRank) {
  auto const size_of = [](int rank) { return static_cast<std::size_t>(rank) * 50'001; };  // rank 0 has none
  for (int root = 0; root < world.size(); ++root) {
    auto const everyone = world.gather(bytes_of_rank(world.rank(), size_of(world.rank())), root);
    if (world.rank() != root) {
      EXPECT_TRUE(everyone.empty());
      continue;
    }
    ASSERT_EQ(everyone.size(), ranks(world));
    for (int from = 0; from < world.size(); ++from) {
      ASSERT_EQ(everyone[static_cast<std::size_t>(from)], bytes_of_rank(from, size_of(from))) << "from " << from;
    }
  }
}

COMMUNICATOR_TEST(GathersNothingFromAnybody) {
  auto const everyone = world.gather({}, 0);
  EXPECT_EQ(everyone, std::vector<std::vector<std::byte>>(world.rank() == 0 ? ranks(world) : 0));
}

COMMUNICATOR_TEST(SendsAroundARingInOrder) {
  if (!can_send()) GTEST_SKIP() << "sends nothing between two ranks";
  if (world.size() == 1) GTEST_SKIP() << "needs another rank";
  auto const next = (world.rank() + 1) % world.size();
  auto const last = (world.rank() + world.size() - 1) % world.size();
  std::vector<std::vector<std::byte>> sent, received;
  std::vector<std::unique_ptr<PendingTransfer>> transfers;
  for (std::size_t const size : {0U, 1U, 4096U, 1'000'003U, 0U, 17U}) {
    sent.push_back(bytes_of_rank(world.rank(), size));
    received.emplace_back(size);
  }
  for (std::size_t i = 0; i < sent.size(); ++i) {
    transfers.push_back(world.start_receive(received[i], last));
    transfers.push_back(world.start_send(sent[i], next));
  }
  for (auto const& transfer : transfers) {
    transfer->wait();
    transfer->wait();
  }
  for (std::size_t i = 0; i < sent.size(); ++i) {
    ASSERT_EQ(received[i], bytes_of_rank(last, sent[i].size())) << "message " << i;
  }
}

COMMUNICATOR_TEST(OneRankReceivesFromAllOthersWhileTheyDoSomethingElse) {
  if (!can_send()) GTEST_SKIP() << "sends nothing between two ranks";
  constexpr std::size_t kBytes = 70'001;
  for (int root = 0; root < world.size(); ++root) {
    auto const mine = bytes_of_rank(world.rank(), kBytes);
    std::vector<std::vector<std::byte>> theirs(ranks(world), std::vector<std::byte>(kBytes));
    std::vector<std::unique_ptr<PendingTransfer>> transfers;
    if (world.rank() != root) transfers.push_back(world.start_send(mine, root));
    for (int from = 0; world.rank() == root && from < world.size(); ++from) {
      if (from != root) transfers.push_back(world.start_receive(theirs[static_cast<std::size_t>(from)], from));
    }
    world.progress();
    transfers.clear();  // waits
    for (int from = 0; world.rank() == root && from < world.size(); ++from) {
      if (from == root) continue;
      ASSERT_EQ(theirs[static_cast<std::size_t>(from)], bytes_of_rank(from, kBytes)) << "from " << from;
    }
  }
}

COMMUNICATOR_TEST(BroadcastsOverlap) {
  constexpr std::size_t kBytes = 300'007;
  std::vector<std::vector<std::byte>> messages;
  for (int root = 0; root < world.size(); ++root) messages.push_back(bytes_of_rank(world.rank(), kBytes));
  std::vector<std::unique_ptr<PendingTransfer>> transfers;
  for (int root = 0; root < world.size(); ++root) {
    transfers.push_back(world.start_broadcast(messages[static_cast<std::size_t>(root)], root));
  }
  for (int root = world.size() - 1; root >= 0; --root) {
    transfers[static_cast<std::size_t>(root)]->wait();
    ASSERT_EQ(messages[static_cast<std::size_t>(root)], bytes_of_rank(root, kBytes)) << "root " << root;
  }
}

COMMUNICATOR_TEST(EveryoneHasEveryonesBytes) {
  auto const size_of = [](int rank) { return static_cast<std::size_t>(rank) * 3'001; };  // rank 0 has none
  auto const everyone = all_gather(world, bytes_of_rank(world.rank(), size_of(world.rank())));
  ASSERT_EQ(everyone.size(), ranks(world));
  for (int from = 0; from < world.size(); ++from) {
    ASSERT_EQ(everyone[static_cast<std::size_t>(from)], bytes_of_rank(from, size_of(from))) << "from " << from;
  }
}

COMMUNICATOR_TEST(KnowsTheMachineOfEveryRank) {
  for (int rank = 0; rank < world.size(); ++rank) EXPECT_NE(world.host(rank), "");
  auto const first = first_ranks_of_hosts(world);
  ASSERT_FALSE(first.empty());
  EXPECT_EQ(first.front(), 0);
}

COMMUNICATOR_TEST(WaitsForWhatIsDoneElsewhere) {
  std::atomic<bool> done = false;
  std::thread elsewhere([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    done = true;
  });
  world.wait_until([&] { return done.load(); });
  EXPECT_TRUE(done);
  elsewhere.join();
  barrier(world);
}

COMMUNICATOR_TEST(RefusesAPeerThatIsNoOtherRank) {
  std::vector<std::byte> bytes(1);
  for (auto const peer : {-1, world.rank(), world.size()}) {
    EXPECT_THROW(std::ignore = world.start_send(bytes, peer), UsageError);
    EXPECT_THROW(std::ignore = world.start_receive(bytes, peer), UsageError);
  }
  EXPECT_THROW(std::ignore = world.start_broadcast(bytes, world.size()), UsageError);
}

COMMUNICATOR_TEST(ARankThatFailsAmongTransfersFinishesThemAndAllAgree) {
  if (!can_send()) GTEST_SKIP() << "sends nothing between two ranks";
  auto const last = world.size() - 1;
  auto const mine = bytes_of_rank(world.rank(), 100'000);
  try {
    on_every_rank(world, [&] {
      std::vector<std::byte> theirs(100'000);
      if (world.rank() == 0) {
        for (int from = 1; from <= last; ++from) {
          world.start_receive(theirs, from)->wait();
          EXPECT_EQ(theirs, bytes_of_rank(from, theirs.size()));
        }
        throw IoError(ExitCode::io, "no space left", "out");
      }
      world.start_send(mine, 0)->wait();
    });
    FAIL() << "nothing thrown";
  } catch (IoError const& error) {
    EXPECT_EQ(error.rank, 0);
    EXPECT_STREQ(error.what(), "no space left");
  }
}

COMMUNICATOR_TEST(RefusesARootThatIsNoRank) {
  std::vector<std::byte> bytes(1);
  EXPECT_THROW(world.broadcast(bytes, world.size()), UsageError);
  EXPECT_THROW(world.broadcast(bytes, -1), UsageError);
  EXPECT_THROW(std::ignore = world.gather(bytes, world.size()), UsageError);
}

COMMUNICATOR_TEST(SplitsByColourAndKeepsTheOrderOfRanks) {
  // Colours fall as ranks rise, so that an order by colour would show.
  auto const color_of = [&](int rank) { return (world.size() - rank) / 2; };
  std::vector<int> members;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (color_of(rank) == color_of(world.rank())) members.push_back(rank);
  }
  auto const part = world.split(color_of(world.rank()));
  ASSERT_EQ(part->size(), static_cast<int>(members.size()));
  EXPECT_EQ(members[static_cast<std::size_t>(part->rank())], world.rank());

  std::vector<std::uint64_t> sum{me(world)};
  part->all_reduce(sum, Reduce::sum);
  EXPECT_EQ(sum[0], std::accumulate(members.begin(), members.end(), std::uint64_t{0}));
}

COMMUNICATOR_TEST(AgreesThatAllIsWell) {
  auto const agreed = world.agree({});
  EXPECT_EQ(agreed.code, ExitCode::done);
  EXPECT_EQ(agreed.rank, -1);
  EXPECT_EQ(agreed.message, "");
}

COMMUNICATOR_TEST(AgreesOnTheLowestFailingRank) {
  for (int first = 0; first < world.size(); ++first) {
    Outcome mine;
    if (world.rank() >= first) {
      mine = {ExitCode::bad_data, -1, "message of " + std::to_string(world.rank()), "file " + std::to_string(first),
              "tensor"};
    }
    auto const agreed = world.agree(mine);
    EXPECT_EQ(agreed.code, ExitCode::bad_data);
    EXPECT_EQ(agreed.rank, first);
    EXPECT_EQ(agreed.message, "message of " + std::to_string(first));
    EXPECT_EQ(agreed.file, "file " + std::to_string(first));
    EXPECT_EQ(agreed.tensor, "tensor");
  }
}

COMMUNICATOR_TEST(CarriesLongMessagesAndAnyBytesInThem) {
  std::string message(300'000, 'x');
  message += std::string("\0\n\xff and \xc3\xa9", 9);
  auto const last = world.size() - 1;
  auto const agreed =
      world.agree(world.rank() == last ? Outcome{ExitCode::difference, -1, message, "", ""} : Outcome{});
  EXPECT_EQ(agreed.rank, last);
  EXPECT_EQ(agreed.message, message);
}

COMMUNICATOR_TEST(AgreementsDoNotMix) {
  for (int round = 0; round < 200; ++round) {
    auto const failing = round % (world.size() + 1);  // in every (size + 1)-th round nobody fails
    auto const mine = world.rank() == failing ? Outcome{ExitCode::io, -1, std::to_string(round), "", ""} : Outcome{};
    auto const agreed = world.agree(mine);
    ASSERT_EQ(agreed.rank, failing < world.size() ? failing : -1);
    ASSERT_EQ(agreed.message, failing < world.size() ? std::to_string(round) : "");
    world.progress();
  }
}

COMMUNICATOR_TEST(WaitsForALateRank) {
  for (int late = 0; late < world.size(); ++late) {
    if (world.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    Outcome const mine = world.rank() == late ? Outcome{ExitCode::io, -1, "late", "", ""} : Outcome{};
    EXPECT_EQ(world.agree(mine).rank, late);
    if (world.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::vector<std::uint64_t> count{1};
    world.all_reduce(count, Reduce::sum);
    EXPECT_EQ(count[0], ranks(world));
  }
}

COMMUNICATOR_TEST(WaitsForALateSenderAndForALateReceiver) {
  if (!can_send()) GTEST_SKIP() << "sends nothing between two ranks";
  constexpr std::size_t kBytes = 1'000'003;
  for (int late = 0; late < std::min(2, world.size()); ++late) {
    if (world.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    auto bytes = bytes_of_rank(world.rank(), kBytes);
    if (world.size() > 1 && world.rank() == 0) world.start_send(bytes, 1)->wait();
    if (world.rank() != 1) continue;
    world.start_receive(bytes, 0)->wait();
    ASSERT_EQ(bytes, bytes_of_rank(0, kBytes));
  }
}

COMMUNICATOR_TEST(OneRanksExceptionBecomesEveryones) {
  auto const last = world.size() - 1;
  try {
    on_every_rank(world, [&] {
      world.progress();
      if (world.rank() == last) throw FormatError("cut short", "model.safetensors", "lm_head.weight");
    });
    FAIL() << "nothing thrown";
  } catch (FormatError const& error) {
    EXPECT_STREQ(error.what(), "cut short");
    EXPECT_EQ(error.file, "model.safetensors");
    EXPECT_EQ(error.tensor, "lm_head.weight");
    EXPECT_EQ(error.rank, last);
  }
}

}  // namespace rankslice
