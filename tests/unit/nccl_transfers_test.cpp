// What the NCCL communicator does with memory and with the order of transfers, over a stand-in for NCCL.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "support/nccl_stand_in/nccl_ranks.hpp"

namespace rankslice {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorConformance);  // only what its tests are made of is used

namespace {

using test::run_nccl_ranks;
using test::stand_in_counts;
using test::StandInRank;
using testing::HasSubstr;

/// Bytes of a rank in memory of its GPU.
class GpuBytes {
 public:
  explicit GpuBytes(std::vector<std::byte> const& bytes) : size_(bytes.size()) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, size_), cudaSuccess);
    memory_.reset(static_cast<std::byte*>(memory));
    std::memcpy(memory, bytes.data(), size_);  // the stand-in's GPU memory is the host's
  }

  [[nodiscard]] std::span<std::byte> span() const { return {memory_.get(), size_}; }
  [[nodiscard]] std::vector<std::byte> copy() const { return {span().begin(), span().end()}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { cudaFree(memory); }
  };
  std::size_t size_;
  std::unique_ptr<std::byte, Free> memory_;
};

TEST(NcclTransfers, MemoryOfTheGpuAndOfTheHostMeet) {
  // 5 KiB in pieces of 1 KiB, whatever the memory is on either side.
  constexpr std::size_t kBytes = 5 * 1024 + 3;
  run_nccl_ranks(2,
                 [](Communicator& world) {
                   auto const last = bytes_of_rank(1 - world.rank(), kBytes);
                   GpuBytes const sent(bytes_of_rank(world.rank(), kBytes));
                   std::vector<std::byte> received(kBytes);
                   auto const receive = world.start_receive(received, 1 - world.rank());
                   world.start_send(sent.span(), 1 - world.rank())->wait();
                   receive->wait();
                   EXPECT_EQ(received, last);

                   GpuBytes const mine(bytes_of_rank(world.rank(), kBytes));
                   auto theirs = bytes_of_rank(world.rank(), kBytes);
                   world.broadcast(world.rank() == 0 ? mine.span() : std::span(theirs), 0);
                   EXPECT_EQ(theirs, bytes_of_rank(0, kBytes));
                   theirs = bytes_of_rank(1, kBytes);
                   world.broadcast(world.rank() == 0 ? mine.span() : std::span(theirs), 1);
                   if (world.rank() == 0) {
                     EXPECT_EQ(mine.copy(), bytes_of_rank(1, kBytes));
                   }
                 },
                 {.staging_bytes = 4096});
}

TEST(NcclTransfers, RefusesMemoryOfAnotherGpu) {
  run_nccl_ranks(
      1,
      [](Communicator& world) {
        cudaSetDevice(1);
        GpuBytes const elsewhere(std::vector<std::byte>(8));
        cudaSetDevice(0);
        EXPECT_THAT([&] { world.broadcast(elsewhere.span(), 0); },
                    testing::ThrowsMessage<UsageError>(HasSubstr("memory of GPU 1")));
      },
      {},
      [](Communicator const&) {
        return StandInRank{.gpus = {0, 1}};
      });
}

TEST(NcclTransfers, LeavesTheCallersGpuAsItIs) {
  run_nccl_ranks(
      1,
      [](Communicator& world) {
        cudaSetDevice(0);
        std::ignore = world.split(0);
        int device = -1;
        cudaGetDevice(&device);
        EXPECT_EQ(device, 0);
      },
      {.device = 1},
      [](Communicator const&) {
        return StandInRank{.gpus = {0, 1}};
      });
}

TEST(NcclTransfers, TouchesNoGpuButItsOwn) {
  run_nccl_ranks(
      1,
      [](Communicator& world) {
        std::vector<std::uint64_t> values{1};
        world.all_reduce(values, Reduce::sum);
        EXPECT_THAT(test::stand_in_contexts(), testing::ElementsAre(1));
      },
      {.device = 1},
      [](Communicator const&) {
        return StandInRank{.gpus = {0, 1}};
      });
}

TEST(NcclTransfers, AllMaySendToAllInAnyOrder) {
  // Each rank begins with another one: without groups, or with groups that favour a peer, they would wait in a circle.
  constexpr std::size_t kBytes = 50'000;
  run_nccl_ranks(4,
                 [](Communicator& world) {
                   std::vector<std::vector<std::byte>> received(4, std::vector<std::byte>(kBytes));
                   auto const mine = bytes_of_rank(world.rank(), kBytes);
                   std::vector<std::unique_ptr<PendingTransfer>> transfers;
                   for (int step = 1; step < 4; ++step) {
                     auto const other = (world.rank() + step) % 4;
                     transfers.push_back(world.start_send(mine, other));
                     transfers.push_back(world.start_receive(received[static_cast<std::size_t>(other)], other));
                   }
                   transfers.clear();  // waits
                   for (int from = 0; from < 4; ++from) {
                     if (from == world.rank()) continue;
                     EXPECT_EQ(received[static_cast<std::size_t>(from)], bytes_of_rank(from, kBytes));
                   }
                 },
                 {.staging_bytes = 64 * 1024});
  EXPECT_EQ(stand_in_counts().largest_group, 6);  // a piece for each direction of each peer
}

TEST(NcclTransfers, AFewSmallMessagesToOnePeerShareARound) {
  run_nccl_ranks(2, [](Communicator& world) {
    std::vector<std::vector<std::byte>> messages;
    for (int i = 0; i < 10; ++i) messages.push_back(bytes_of_rank(world.rank() == 0 ? i : 99, 100));
    std::vector<std::unique_ptr<PendingTransfer>> transfers;
    for (auto& message : messages) {
      transfers.push_back(world.rank() == 0 ? world.start_send(message, 1) : world.start_receive(message, 0));
    }
    transfers.clear();  // waits
    for (int i = 0; i < 10; ++i) EXPECT_EQ(messages[static_cast<std::size_t>(i)], bytes_of_rank(i, 100));
  });
  EXPECT_EQ(stand_in_counts().largest_group, 8);
}

TEST(NcclTransfers, AnAgreementDoesNotKeepWhatWasStartedBeforeItWaiting) {
  run_nccl_ranks(2,
                 [](Communicator& world) {
                   auto bytes = bytes_of_rank(world.rank(), 50'000);
                   if (world.rank() == 0) {
                     auto const send = world.start_send(bytes, 1);
                     std::ignore = world.agree({});
                   } else {
                     std::vector<std::byte> received(50'000);
                     world.start_receive(received, 0)->wait();
                     EXPECT_EQ(received, bytes_of_rank(0, 50'000));
                     std::ignore = world.agree({});
                   }
                 },
                 {.staging_bytes = 4096});
}

TEST(NcclTransfers, AWaitCarriesOnWhatWasStartedOnASplitToo) {
  run_nccl_ranks(2, [](Communicator& world) {
    auto const part = world.split(0);
    auto shared = bytes_of_rank(world.rank(), 1000);
    auto sent = bytes_of_rank(1, 2000);
    std::vector<std::byte> received(2000);
    if (world.rank() == 0) {
      auto const broadcast = part->start_broadcast(shared, 0);
      world.start_receive(received, 1)->wait();
      broadcast->wait();
      EXPECT_EQ(received, sent);
    } else {
      auto const send = world.start_send(sent, 0);
      part->start_broadcast(shared, 0)->wait();
      send->wait();
      EXPECT_EQ(shared, bytes_of_rank(0, 1000));
    }
  });
}

TEST(NcclTransfers, ProgressCarriesTransfersOn) {
  run_nccl_ranks(2, [](Communicator& world) {
    auto bytes = bytes_of_rank(0, 1000);
    std::vector<std::byte> received(1000);
    auto const transfer = world.rank() == 0 ? world.start_send(bytes, 1) : world.start_receive(received, 0);
    while (stand_in_counts().operations < 2) world.progress();
    transfer->wait();
    EXPECT_TRUE(world.rank() == 0 || received == bytes);
  });
}

}  // namespace
}  // namespace rankslice
