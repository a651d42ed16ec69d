// Tensors brought together over ranks that are threads: what arrives, and how ranks that fail alone end all.

#include "gathered_tensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "plan/held.hpp"
#include "support/forwarding_communicator.hpp"
#include "support/hand_model.hpp"
#include "support/thread_world.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kBatchBytes = 3000;  // a few experts

/// What stands at a byte of a parameter, on whichever rank.
std::byte value_at(std::uint32_t parameter, std::uint64_t byte) {
  return static_cast<std::byte>((byte * 31 + parameter * 7 + byte / 251) & 0xff);
}

/// All bytes of the slices of a parameter.
std::vector<std::byte> values_of(Model const& model, PlannedSlice const& item) {
  auto const& parameter = model.parameters[item.parameter];
  auto const row_bytes = parameter.row_bytes(Form::native);
  std::vector<std::byte> bytes;
  for (auto part = item.slice.part.begin; part < item.slice.part.end; ++part) {
    auto const first = (part * parameter.row_count() + item.slice.rows.begin) * row_bytes;
    for (std::uint64_t i = 0; i < item.slice.rows.size() * row_bytes; ++i) {
      bytes.push_back(value_at(item.parameter, first + i));
    }
  }
  return bytes;
}

/// What one rank of a mesh has: kept in memory, as a state dict does, or made when it is asked for, as files are read.
class OwnTensors final : public NativeSource {
 public:
  OwnTensors(Model const& model, Mesh const& mesh, int rank, bool keeps) : model_(model), keeps_(keeps) {
    for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
      held_.push_back({i, held_slice(model.parameters[i], mesh, mesh.coordinate(rank))});
      bytes_.push_back(values_of(model, held_.back()));
    }
  }
  [[nodiscard]] std::span<std::byte const> kept_bytes(PlannedSlice const& wanted, bool on_device) const override {
    asked_on_device = asked_on_device || on_device;
    if (!keeps_) return {};
    auto const& parameter = model_.parameters[wanted.parameter];
    auto const& held = held_[wanted.parameter].slice;
    auto const first = (wanted.slice.part.begin - held.part.begin) * held.rows.size();
    return std::span(bytes_[wanted.parameter])
        .subspan(first * parameter.row_bytes(Form::native), parameter.bytes(wanted.slice, Form::native));
  }

  void for_each_box(PlannedSlice const& wanted, BoxStep const& use) override {
    if (++asked_ == fails_at) throw IoError(ExitCode::io, "the disk is gone");
    auto const& held = held_[wanted.parameter].slice;
    ASSERT_EQ(intersection(held, wanted.slice), wanted.slice) << "asked for what it does not have";
    if (keeps_) return use(wanted.slice, {.data = bytes_[wanted.parameter].data(), .slice = held});
    // In two boxes, in memory that is used again.
    auto const middle = (wanted.slice.part.begin + wanted.slice.part.end) / 2;
    for (auto const& part : {Range{wanted.slice.part.begin, middle}, Range{middle, wanted.slice.part.end}}) {
      Slice const slice{.part = part, .rows = wanted.slice.rows};
      if (slice.empty()) continue;
      box_ = values_of(model_, {wanted.parameter, slice});
      use(slice, {.data = box_.data(), .slice = slice});
    }
  }

  int fails_at = 0;  // of the calls, from 1 on
  mutable bool asked_on_device = false;

 private:
  Model const& model_;
  bool keeps_;
  std::vector<PlannedSlice> held_;
  std::vector<std::vector<std::byte>> bytes_;
  std::vector<std::byte> box_;
  int asked_ = 0;
};

struct Job {
  Model model = split_model(5, 24, 12);
  Mesh mesh;
  GatherRoute route;
  bool keeps = true;
  bool dense_everywhere = true;
  bool all_well = true;  // else what comes last may be anything

  [[nodiscard]] GatherPlan plan() const {
    std::vector<PlannedSlice> wanted;
    for (std::uint32_t i = 0; i < model.parameters.size(); ++i) wanted.push_back({i, model.parameters[i].whole()});
    GatherOwners owners{.holdings = {.mesh = mesh}, .dense_everywhere = dense_everywhere};
    if (route.receivers.size() == 1) owners.receiver = route.receivers.front();
    return plan_gather(model, wanted, owners, kBatchBytes);
  }
};

/// What a rank received: every slice once, with the values that it has everywhere.
void expect_all(Job const& job, std::vector<PlannedSlice> const& boxes) {
  auto const plan = job.plan();
  ASSERT_EQ(boxes.size(), plan.blocks.size());
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    EXPECT_EQ(boxes[i].parameter, plan.blocks[i].parameter);
    EXPECT_EQ(boxes[i].slice, plan.blocks[i].slice);
  }
}

void gather_on(Communicator& world, Job const& job, OwnTensors& own, std::function<void()> const& block_done) {
  auto const plan = job.plan();
  GatherPaths const paths(job.route, world);
  GatheredTensors gathered(job.model, plan, paths, own, [](std::uint64_t) {});
  std::vector<PlannedSlice> boxes;
  gathered.gather([&](std::vector<PlannedSlice> const& slices, NativeSource& source) {
    for (auto const& item : slices) {
      source.for_each_box(item, [&](Slice const& slice, NativeBox<std::byte const> const& box) {
        auto const expected = values_of(job.model, {item.parameter, slice});
        auto const& parameter = job.model.parameters[item.parameter];
        auto const first = (slice.part.begin - box.slice.part.begin) * parameter.row_bytes(Form::native);
        auto const* const found = box.data + (parameter.stacked_experts ? 0 : first);
        EXPECT_TRUE(!job.all_well || std::equal(expected.begin(), expected.end(), found)) << to_string(slice);
        boxes.push_back({item.parameter, slice});
        block_done();
      });
    }
  });
  if (paths.receives()) expect_all(job, boxes);
}

std::vector<GatherRoute> routes_of(int ranks) {
  std::vector<int> pairs;
  for (int rank = 0; rank < ranks; ++rank) pairs.push_back(rank / 2 * 2);
  return {route_to(ranks - 1, ranks), route_to_hosts(pairs), route_to_all(ranks)};
}

std::vector<Mesh> const kMeshes{{1, 1, 1}, {1, 1, 2}, {2, 1, 1}, {1, 2, 1}, {1, 1, 3}, {1, 2, 2}, {2, 2, 1}, {1, 1, 4}};

TEST(GatheredTensors, BringEveryBlockInOrderByEveryRoute) {
  for (auto const& mesh : kMeshes) {
    for (auto const& route : routes_of(mesh.ranks())) {
      for (auto const keeps : {true, false}) {
        SCOPED_TRACE(testing::Message() << mesh.ep_replicate << " x " << mesh.ep_shard << " x " << mesh.ep << ", to "
                                        << route.receivers.size() << (keeps ? ", kept" : ""));
        Job const job{.mesh = mesh, .route = route, .keeps = keeps, .dense_everywhere = keeps};
        run_ranks(mesh.ranks(), [&](Communicator& world) {
          OwnTensors own(job.model, mesh, world.rank(), keeps);
          gather_on(world, job, own, [] {});
        });
      }
    }
  }
}

TEST(GatheredTensors, NeedOnlyMessagesOrToAllRanksOnlyBroadcasts) {
  Mesh const mesh{.ep_replicate = 1, .ep_shard = 2, .ep = 2};
  auto const gather_over = [&](GatherRoute const& route, Offers offers) {
    Job const job{.mesh = mesh, .route = route};
    run_ranks(4,
              [&](Communicator& world) {
                OwnTensors own(job.model, mesh, world.rank(), job.keeps);
                gather_on(world, job, own, [] {});
              },
              {.offers = offers});
  };
  for (auto const& route : routes_of(4)) gather_over(route, Offers::messages);
  gather_over(route_to_all(4), Offers::collectives);
}

TEST(GatheredTensors, AreSentStraightFromADeviceByThoseWhoDoNotNeedThemThemselves) {
  class OverDevices final : public ForwardingCommunicator {
   public:
    using ForwardingCommunicator::ForwardingCommunicator;
    [[nodiscard]] bool takes_device_memory() const override { return true; }
    [[nodiscard]] std::unique_ptr<Communicator> split(int) override {
      throw std::logic_error("two communicators of GPUs at once may wait for each other forever");
    }
  };
  for (auto const& route : routes_of(4)) {
    Job const job{.mesh = make_mesh(4), .route = route};
    run_ranks(4, [&](Communicator& world) {
      OverDevices over_devices(world);
      OwnTensors own(job.model, job.mesh, world.rank(), job.keeps);
      gather_on(over_devices, job, own, [] {});
      auto const only_sends = std::ranges::count(route.receivers, world.rank()) == 0;
      EXPECT_EQ(own.asked_on_device, only_sends) << world.rank();
    });
  }
}

/// What all ranks threw is the one error of one of them.
void expect_same_error(std::vector<std::exception_ptr> const& thrown, ExitCode code, int rank,
                       std::string const& words) {
  for (auto const& each : thrown) {
    ASSERT_TRUE(each);
    try {
      std::rethrow_exception(each);
    } catch (Error const& error) {
      EXPECT_EQ(error.code, code) << error.what();
      EXPECT_EQ(error.rank, rank);
      EXPECT_THAT(error.what(), HasSubstr(words));
    }
  }
}

TEST(GatheredTensors, ARankWhoseSourceFailsEndsAllWithItsErrorWhereverThatHappens) {
  Mesh const mesh{.ep_replicate = 1, .ep_shard = 1, .ep = 4};
  for (auto const& route : routes_of(4)) {
    for (auto const failing : {0, 2, 3}) {
      for (auto const call : {1, 2, 4}) {
        SCOPED_TRACE(testing::Message() << "rank " << failing << ", call " << call << ", to "
                                        << route.receivers.size());
        Job const job{.mesh = mesh, .route = route, .keeps = false, .dense_everywhere = false, .all_well = false};
        auto const thrown = exceptions_of_ranks(4, [&](Communicator& world) {
          OwnTensors own(job.model, mesh, world.rank(), job.keeps);
          if (world.rank() == failing) own.fails_at = call;
          gather_on(world, job, own, [] {});
        });
        expect_same_error(thrown, ExitCode::io, failing, "the disk is gone");
      }
    }
  }
}

TEST(GatheredTensors, ARankThatFailsWithABlockEndsAllWithItsErrorWhereverThatHappens) {
  Mesh const mesh{.ep_replicate = 2, .ep_shard = 2, .ep = 1};
  for (auto const& route : routes_of(4)) {
    auto const failing = route.receivers.back();
    for (auto const call : {1, 2, 7, 22}) {
      SCOPED_TRACE(testing::Message() << "block " << call << ", to " << route.receivers.size());
      Job const job{.mesh = mesh, .route = route};
      auto const thrown = exceptions_of_ranks(4, [&](Communicator& world) {
        OwnTensors own(job.model, mesh, world.rank(), job.keeps);
        auto blocks = 0;
        gather_on(world, job, own, [&] {
          if (world.rank() == failing && ++blocks == call) throw VerifyError("it does not fit");
        });
      });
      expect_same_error(thrown, ExitCode::difference, failing, "it does not fit");
    }
  }
}

TEST(GatheredTensors, ACommunicatorThatCannotSendIsRefusedOnAllRanksTogether) {
  Job const job{.mesh = make_mesh(4), .route = route_to_hosts({0, 0, 2, 2})};
  auto const thrown = exceptions_of_ranks(4,
                                          [&](Communicator& world) {
                                            OwnTensors own(job.model, job.mesh, world.rank(), job.keeps);
                                            gather_on(world, job, own, [] {});
                                          },
                                          {.offers = Offers::collectives});
  expect_same_error(thrown, ExitCode::usage, 0, "nothing can be sent to one rank: start_send is not given");
}

TEST(GatheredTensors, ARankWhoseSendsAreRefusedEndsAllWithItsErrorBeforeTheFirstBatch) {
  class Mute final : public ForwardingCommunicator {
   public:
    using ForwardingCommunicator::ForwardingCommunicator;
    [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> /*bytes*/,
                                                              int /*to*/) override {
      throw UsageError("this rank has no way to send");
    }
  };
  Job const job{.mesh = make_mesh(3), .route = route_to(0, 3)};
  auto const thrown = exceptions_of_ranks(3, [&](Communicator& world) {
    Mute mute(world);
    OwnTensors own(job.model, job.mesh, world.rank(), job.keeps);
    gather_on(world.rank() == 2 ? mute : world, job, own, [] {});
  });
  expect_same_error(thrown, ExitCode::usage, 2, "this rank has no way to send");
}

/// Of whom transfers of one kind fail: as they start, or as they are waited for.
class BrokenCommunicator final : public ForwardingCommunicator {
 public:
  enum class Breaks : std::uint8_t { start_send, start_receive, start_broadcast, wait };

  BrokenCommunicator(Communicator& inner, Breaks breaks, int call)
      : ForwardingCommunicator(inner), breaks_(breaks), calls_left_(call) {}

  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    meet(Breaks::start_send);
    return std::make_unique<Transfer>(*this, next().start_send(bytes, to));
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override {
    meet(Breaks::start_receive);
    return std::make_unique<Transfer>(*this, next().start_receive(bytes, from));
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override {
    meet(Breaks::start_broadcast);
    return std::make_unique<Transfer>(*this, next().start_broadcast(bytes, root));
  }

 private:
  class Transfer final : public PendingTransfer {
   public:
    Transfer(BrokenCommunicator& world, std::unique_ptr<PendingTransfer> inner)
        : world_(world), inner_(std::move(inner)) {}
    void wait() override {
      world_.meet(Breaks::wait);
      inner_->wait();
    }

   private:
    BrokenCommunicator& world_;
    std::unique_ptr<PendingTransfer> inner_;
  };

  void meet(Breaks call) {
    if (call == breaks_ && --calls_left_ == 0) throw UsageError("memory of another GPU");
  }

  Breaks breaks_;
  int calls_left_;
};

TEST(GatheredTensors, ARankWhoseCommunicatorFailsGivesUpForAllAndSaysWhy) {
  using Breaks = BrokenCommunicator::Breaks;
  struct Case {
    GatherRoute route;
    int failing;
    Breaks breaks;
  };
  std::vector<Case> const cases{{route_to(1, 2), 0, Breaks::start_send},       {route_to(1, 2), 0, Breaks::wait},
                                {route_to(1, 2), 1, Breaks::start_receive},    {route_to(1, 2), 1, Breaks::wait},
                                {route_to_all(2), 1, Breaks::start_broadcast}, {route_to_all(2), 1, Breaks::wait}};
  for (auto const& [route, failing, breaks] : cases) {
    for (auto const call : {2, 5}) {  // the first send and receive are a trial
      SCOPED_TRACE(testing::Message() << "call " << call << " of kind " << static_cast<int>(breaks) << " on rank "
                                      << failing << ", to " << route.receivers.size());
      Job const job{.mesh = make_mesh(2), .route = route, .all_well = false};
      std::vector<std::string> heard;
      auto const rank_main = [&, failing = failing, breaks = breaks](Communicator& world) {
        OwnTensors own(job.model, job.mesh, world.rank(), job.keeps);
        BrokenCommunicator broken(world, breaks, call);
        gather_on(world.rank() == failing ? broken : world, job, own, [] {});
      };
      auto const listen = [&](Collectives& group) {
        group.abort = [&](ExitCode code, std::string const& message) {
          heard.push_back(std::to_string(static_cast<int>(code)) + ": " + message);
        };
      };
      auto const thrown = exceptions_of_ranks(2, rank_main, {.change = listen});
      // The other one gives up too, where it misses this one.
      ASSERT_FALSE(heard.empty());
      EXPECT_EQ(heard.front(), "2: memory of another GPU");
      ASSERT_TRUE(thrown[static_cast<std::size_t>(failing)]);
      try {
        std::rethrow_exception(thrown[static_cast<std::size_t>(failing)]);
      } catch (CommError const& error) {
        EXPECT_EQ(error.code, ExitCode::usage);
        EXPECT_STREQ(error.what(), "memory of another GPU");
      }
    }
  }
}

std::vector<GatherBlock> first_batch(GatherPlan const& plan) {
  return {plan.blocks.begin(), std::next(plan.blocks.begin(), static_cast<std::ptrdiff_t>(plan.batches[0].end))};
}

TEST(GatheredTensors, NoMoreThanTheBatchInWhichOneFailedIsStillSent) {
  Job const job{.mesh = make_mesh(2), .route = route_to(0, 2)};
  std::atomic<std::size_t> sent = 0;
  (void)exceptions_of_ranks(2, [&](Communicator& world) {
    auto const plan = job.plan();
    ASSERT_GT(plan.batches.size(), 3U);
    OwnTensors own(job.model, job.mesh, world.rank(), true);
    GatherPaths const paths(job.route, world);
    GatheredTensors gathered(job.model, plan, paths, own, [&](std::uint64_t) {
      if (world.rank() == 1) ++sent;
    });
    gathered.gather([](std::vector<PlannedSlice> const&, NativeSource&) { throw VerifyError("at once"); });
  });
  auto const of_first = slices_sent_by({.blocks = first_batch(job.plan()), .batches = {}}, 1).size();
  EXPECT_EQ(sent, of_first);
}

}  // namespace
}  // namespace rankslice::test
