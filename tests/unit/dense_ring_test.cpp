// Shares that go around a ring of ranks that are threads: what arrives, and how ranks that fail alone end all.

#include "dense_ring.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "support/counting_communicator.hpp"
#include "support/device_bytes.hpp"
#include "support/hand_model.hpp"
#include "support/late_device.hpp"
#include "support/misbehaving_communicator.hpp"
#include "support/thread_world.hpp"

namespace rankslice::test {
namespace {

using Bytes = std::vector<std::byte>;

constexpr int kMostRanks = 8;

/// Large and small tensors, converted ones, an empty one, and one that is not shared.
Model example() {
  Model model;
  append_dense(model, "embed", DType::BF16, DType::BF16, {101, 16});
  append_grouped(model, "experts", {2, 4, 8});
  append_dense(model, "norm", DType::F32, DType::F32, {7});
  append_dense(model, "scalar", DType::I64, DType::I64, {});
  append_dense(model, "nothing", DType::BF16, DType::BF16, {0, 5});
  append_dense(model, "widened", DType::BF16, DType::F32, {50, 3});
  return model;
}

std::byte value_at(std::uint32_t parameter, std::uint64_t byte) {
  return static_cast<std::byte>((byte * 31 + parameter * 7 + byte / 251) & 0xff);
}

/// The memory of one rank: its share has values, all else is garbage.
struct Memory {
  Memory(Model const& model, DenseShares const& shares, int rank, std::shared_ptr<Device> const& device) {
    for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
      auto const& parameter = model.parameters[i];
      auto const size = parameter.bytes(parameter.whole(), Form::native);
      Bytes bytes(size, std::byte{0xa5});
      auto& whole = expected.emplace_back(bytes);
      for (std::uint64_t at = 0; shares.shared[i] && at < size; ++at) whole[at] = value_at(i, at);
      for (auto const& [index, slice] : shares.by_rank[static_cast<std::size_t>(rank)]) {
        auto const unit = parameter.unit_bytes(Form::native);
        for (auto at = slice.part.begin * unit; index == i && at < slice.part.end * unit; ++at) bytes[at] = whole[at];
      }
      auto const host = std::make_shared<Bytes>(bytes);
      buffers.push_back(device ? Buffer{upload(*device, bytes), size, device}
                               : Buffer{std::shared_ptr<std::byte>(host, host->data()), size, nullptr});
    }
  }

  [[nodiscard]] bool is_whole() const {
    auto whole = true;
    for (std::size_t i = 0; i < buffers.size(); ++i) whole = whole && copy_of(buffers[i]) == expected[i];
    return whole;
  }

  std::vector<Buffer> buffers;
  std::vector<Bytes> expected;
};

/// Hosts on which ranks lie as schedulers put them: one after the other, in blocks, in turn.
std::vector<std::vector<std::string>> ways_to_lie(int ranks) {
  std::vector<std::vector<std::string>> ways(3);
  for (int rank = 0; rank < ranks; ++rank) {
    ways[0].push_back("a");
    ways[1].push_back(rank < ranks / 2 ? "a" : "b");
    ways[2].push_back(rank % 2 == 0 ? "a" : "b");
  }
  return ways;
}

struct Sizes {
  std::uint64_t piece, batch;
};

TEST(DenseRing, EveryRankHasEveryShareAndSendsWhatThePlanSays) {
  auto const model = example();
  for (int ranks = 1; ranks <= kMostRanks; ++ranks) {
    auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(ranks)}, ranks);
    for (auto const& hosts : ways_to_lie(ranks)) {
      for (auto const& [piece_bytes, batch_bytes] :
           {Sizes{16, 1}, Sizes{16, 1500}, Sizes{200, 1 << 20}, Sizes{1 << 20, 1}}) {
        run_ranks(ranks,
                  [&](Communicator& inner) {
                    CountedBytes counted;
                    CountingCommunicator world(inner, counted);
                    auto const rank = static_cast<std::size_t>(world.rank());
                    Memory const memory(model, shares, world.rank(), nullptr);
                    DenseRing ring(model, shares, memory.buffers, world, piece_bytes, batch_bytes);
                    std::uint64_t received = 0;
                    counted = {};
                    ring.hand_around([&](std::uint64_t bytes) { received += bytes; });
                    auto const planned = dense_traffic(model, Form::hf, shares, ring_of(world))[rank];
                    EXPECT_TRUE(memory.is_whole()) << ranks << " ranks, pieces of " << piece_bytes;
                    EXPECT_EQ(counted.sent, planned.sent);
                    EXPECT_EQ(received, planned.received);
                    EXPECT_EQ(ring.bytes(), planned.received);
                  },
                  {.hosts = hosts});
      }
    }
  }
}

TEST(DenseRing, RanksOfOneHostStandTogether) {
  run_ranks(5,
            [](Communicator& world) {
              EXPECT_EQ(ring_of(world), (std::vector<int>{0, 2, 4, 1, 3}));
            },
            {.hosts = {"a", "b", "a", "b", "a"}});
}

TEST(DenseRing, MessagesAloneAreEnough) {
  auto const model = example();
  auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(3)}, 3);
  run_ranks(3,
            [&](Communicator& world) {
              Memory const memory(model, shares, world.rank(), nullptr);
              DenseRing(model, shares, memory.buffers, world, 100).hand_around([](std::uint64_t) {});
              EXPECT_TRUE(memory.is_whole());
            },
            {.offers = Offers::messages});
}

TEST(DenseRing, TensorsOnADeviceOfOneRankAndTheHostOfAnotherMeet) {
  auto const model = example();
  for (std::uint64_t piece_bytes : {64U, 1000U}) {
    auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(4)}, 4);
    run_ranks(4, [&](Communicator& world) {
      auto const device = world.rank() == 2 ? nullptr : std::make_shared<LateDevice>();
      Memory const memory(model, shares, world.rank(), device);
      DenseRing(model, shares, memory.buffers, world, piece_bytes).hand_around([](std::uint64_t) {});
      EXPECT_TRUE(memory.is_whole()) << world.rank();
    });
  }
}

/// How a ring ends on all ranks when `spoil` does something to one of them.
template <typename Received>
std::vector<std::exception_ptr> exceptions_of_ring(int ranks, LateDevice* device_of_0, Received const& received) {
  auto const model = example();
  auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(ranks)}, ranks);
  return exceptions_of_ranks(ranks, [&](Communicator& world) {
    auto const device = world.rank() == 0 && device_of_0 != nullptr
                            ? std::shared_ptr<Device>(device_of_0, [](Device*) {})
                            : std::shared_ptr<Device>();
    Memory const memory(model, shares, world.rank(), device);
    DenseRing ring(model, shares, memory.buffers, world, 64);
    if (world.rank() == 0 && device_of_0 != nullptr) device_of_0->calls_until_failure = 5;
    ring.hand_around([&](std::uint64_t bytes) { received(world, bytes); });
  });
}

TEST(DenseRing, ADeviceThatFailsOnOneRankEndsItOnAllWithItsError) {
  LateDevice device;
  auto const thrown = exceptions_of_ring(4, &device, [](Communicator&, std::uint64_t) {});
  for (auto const& error : thrown) {
    ASSERT_TRUE(error);
    EXPECT_THROW(std::rethrow_exception(error), DeviceError);
  }
}

TEST(DenseRing, ACallbackThatStopsOneRankStopsAll) {
  for (int stops = 0; stops < 4; ++stops) {
    auto const thrown = exceptions_of_ring(4, nullptr, [&](Communicator& world, std::uint64_t) {
      if (world.rank() == stops) throw Interrupted();
    });
    for (auto const& error : thrown) {
      ASSERT_TRUE(error);
      EXPECT_THROW(std::rethrow_exception(error), Interrupted);
    }
  }
}

TEST(DenseRing, ARankWhoseMessagesFailGivesUpForAll) {
  auto const model = example();
  auto const shares = share_dense(model, Form::hf, {.mesh = make_mesh(3)}, 3);
  for (auto const call : {CallKind::send, CallKind::receive}) {
    auto const thrown =
        exceptions_of_ranks(3,
                            [&](Communicator& inner) {
                              TransitFault const fault{.effect = TransitFault::Effect::fail, .call = call, .number = 3};
                              MisbehavingCommunicator world(inner, inner.rank() == 1 ? fault : TransitFault{});
                              Memory const memory(model, shares, world.rank(), nullptr);
                              DenseRing(model, shares, memory.buffers, world, 64).hand_around([](std::uint64_t) {});
                            },
                            {.timeout = std::chrono::seconds(3)});
    for (auto const& error : thrown) EXPECT_TRUE(error);
  }
}

}  // namespace
}  // namespace rankslice::test
