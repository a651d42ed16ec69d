// Rows that ranks of an ep_shard group read together and exchange: what arrives is what each would have read alone.

#include "row_exchange.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "rankslice/error.hpp"
#include "rankslice/load.hpp"
#include "rankslice/verify.hpp"

#include "core/rows_before.hpp"
#include "io/memory.hpp"
#include "support/counting_communicator.hpp"
#include "support/device_bytes.hpp"
#include "support/faulty_reader.hpp"
#include "support/forwarding_communicator.hpp"
#include "support/late_device.hpp"
#include "support/misbehaving_communicator.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"
#include "watch.hpp"

namespace rankslice::test {
namespace {

using testing::HasSubstr;

/// Every way in which experts lie as columns, and every conversion.
struct Case {
  std::string name;
  SynthOptions checkpoint{};
  OpenOptions open{};
};

void PrintTo(Case const& example, std::ostream* out) { *out << example.name; }

std::vector<Case> cases() {
  auto const small = [](SynthOptions options) {
    options.layers = 1;
    options.experts = 3;
    return options;
  };
  return {
      {.name = "grouped", .checkpoint = small({})},
      {.name = "split", .checkpoint = small({.decoder_experts = ExpertForm::split, .mtp_experts = ExpertForm::split})},
      {.name = "as_float32", .checkpoint = small({}), .open = {.dtype = DType::F32}},
      {.name = "fp8", .checkpoint = small({.layout = SynthLayout::hub, .quantization = SynthQuantization::fp8})},
  };
}

std::vector<Mesh> const kMeshes{{1, 2, 1}, {1, 2, 2}, {2, 2, 1}, {1, 4, 1}, {1, 4, 2}, {2, 2, 2}, {1, 2, 4}, {1, 8, 1}};

constexpr std::uint64_t kBatchBytes = 500'000;
constexpr std::uint64_t kSmallBlocks = 1024;  // of which an expert has many

/// A state whose rows have been read by each rank alone, and the same before anything is exchanged.
struct Rank {
  StateDict alone;
  StateDict state;
  RowExchangePlan plan;
  Digests sums;
};

/// Garbage where the plan's rows belong.
void spoil(StateDict const& state, RowExchangePlan const& plan) {
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const exchanged = std::ranges::binary_search(plan.parameters, tensor.index);
    if (exchanged) fill(tensor.data, Bytes(tensor.data.bytes, std::byte{0xa5}));
  }
}

Rank make_rank(std::shared_ptr<Checkpoint const> const& source, Mesh const& mesh, int rank,
               std::shared_ptr<Device> const& device = nullptr, std::uint64_t block_bytes = kRowBlockBytes) {
  auto const at = mesh.coordinate(rank);
  Rank made{.alone = load(source, mesh, at),
            .state = load(source, mesh, at, {.device = device}),
            .plan = plan_row_exchange(source->storage, source->model, {.mesh = mesh}, rank, kBatchBytes, block_bytes),
            .sums = Digests(source->model)};
  spoil(made.state, made.plan);
  return made;
}

/// All tensors as each rank reads them alone; of digests, those of what was exchanged.
void expect_as_alone(Rank const& rank) {
  auto const& model = rank.alone.source->model;
  for (auto const& [fqn, tensor] : rank.alone.tensors) {
    EXPECT_TRUE(copy_of(tensor.data) == copy_of(rank.state.tensors.at(fqn).data)) << fqn;
  }
  ASSERT_FALSE(rank.plan.parameters.empty());
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    auto const exchanged = std::ranges::binary_search(rank.plan.parameters, model.tensors[i].parameter);
    for (auto const table : {&Digests::source, &Digests::stored}) {
      auto const found = (rank.sums.*table).of(i);
      auto const expected = (rank.alone.read.*table).of(i);
      if (exchanged) {
        EXPECT_TRUE(std::ranges::equal(found, expected)) << model.tensors[i].key;
      } else {
        EXPECT_THAT(found, testing::Each(0U)) << model.tensors[i].key;
      }
    }
  }
}

class RowExchangeOf : public testing::TestWithParam<Case> {
 protected:
  RowExchangeOf() {
    synthesize(dir_.file("checkpoint"), GetParam().checkpoint);
    source_ = open_checkpoint(dir_.file("checkpoint"), GetParam().open);
  }
  TempDir dir_;
  std::shared_ptr<Checkpoint const> source_;
};

TEST_P(RowExchangeOf, GivesEveryRankTheBytesAndDigestsThatItWouldHaveReadAlone) {
  for (auto const& mesh : kMeshes) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", mesh.ep_replicate, mesh.ep_shard, mesh.ep));
    run_ranks(mesh.ranks(), [&](Communicator& world) {
      auto rank = make_rank(source_, mesh, world.rank());
      exchange_rows(rank.state, rank.plan, &rank.sums, {}, world);
      expect_as_alone(rank);
    });
  }
}

TEST_P(RowExchangeOf, GivesTheSameWhereAnExpertTravelsInManyBlocks) {
  for (auto const& mesh : {Mesh{1, 2, 2}, Mesh{2, 2, 1}, Mesh{1, 8, 1}}) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", mesh.ep_replicate, mesh.ep_shard, mesh.ep));
    run_ranks(mesh.ranks(), [&](Communicator& world) {
      auto rank = make_rank(source_, mesh, world.rank(), nullptr, kSmallBlocks);
      auto const whole_experts = plan_row_exchange(source_->storage, source_->model, {.mesh = mesh}, world.rank());
      if (!whole_experts.blocks.empty()) {
        EXPECT_GT(rank.plan.blocks.size(), 2 * whole_experts.blocks.size());
      }
      std::uint64_t done = 0;
      auto const count = [&](std::uint64_t bytes) { done += bytes; };
      exchange_rows(rank.state, rank.plan, &rank.sums, count, world);
      expect_as_alone(rank);
      auto const planned = row_traffic(source_->model, rank.plan);
      EXPECT_EQ(done, planned.read + planned.received);
    });
  }
}

TEST_P(RowExchangeOf, FillsTheMemoryOfDevices) {
  Mesh const mesh{.ep_replicate = 1, .ep_shard = 2, .ep = 2};
  run_ranks(mesh.ranks(), [&](Communicator& world) {
    auto rank = make_rank(source_, mesh, world.rank(), std::make_shared<LateDevice>());
    exchange_rows(rank.state, rank.plan, &rank.sums, {}, world);
    expect_as_alone(rank);
  });
}

TEST_P(RowExchangeOf, ReadsAndSendsWhatThePlanSays) {
  for (auto const& mesh : {Mesh{1, 2, 1}, Mesh{2, 2, 1}, Mesh{1, 4, 2}}) {
    std::vector<CountedBytes> counted(static_cast<std::size_t>(mesh.ranks()));
    auto const planned = row_traffic(source_->model, Form::hf, mesh);
    run_ranks(mesh.ranks(), [&](Communicator& world) {
      auto& mine = counted[static_cast<std::size_t>(world.rank())];
      auto rank = make_rank(source_, mesh, world.rank());
      CountingCommunicator counting(world, mine);
      std::uint64_t done = 0;
      auto const count = [&](std::uint64_t bytes) { done += bytes; };
      exchange_rows(rank.state, rank.plan, &rank.sums, count, counting);
      auto const& expected = planned[static_cast<std::size_t>(world.rank())];
      EXPECT_EQ(done, expected.read + expected.received);
      EXPECT_EQ(mine.sent, expected.sent);
      EXPECT_EQ(mine.broadcast + mine.summed + mine.gathered, 0U);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, RowExchangeOf, testing::ValuesIn(cases()),
                         [](auto const& instance) { return instance.param.name; });

class RowExchanges : public testing::Test {
 protected:
  RowExchanges() {
    synthesize(dir_.file("checkpoint"), {.layers = 2, .experts = 5});
    source_ = open_checkpoint(dir_.file("checkpoint"));
  }

  /// What the ranks of a mesh throw, of which one opens files, is called back and travels as it says.
  struct Oddity {
    int rank = 0;
    OpenFile open = open_reader;
    BlockDone done{};
  };
  [[nodiscard]] std::vector<std::exception_ptr> thrown_with(Mesh const& mesh, Oddity const& odd) const {
    return exceptions_of_ranks(mesh.ranks(), [&](Communicator& world) {
      auto rank = make_rank(source_, mesh, world.rank());
      auto const is_odd = world.rank() == odd.rank;
      exchange_rows(rank.state, rank.plan, &rank.sums, is_odd ? odd.done : BlockDone(), world, {},
                    is_odd ? odd.open : open_reader);
    });
  }

  TempDir dir_;
  std::shared_ptr<Checkpoint const> source_;
};

TEST_F(RowExchanges, DigestNothingWhereNobodyAsks) {
  auto const mesh = make_mesh(4, 2, 2);
  run_ranks(4, [&](Communicator& world) {
    auto rank = make_rank(source_, mesh, world.rank());
    exchange_rows(rank.state, rank.plan, nullptr, {}, world);
    for (auto const& [fqn, tensor] : rank.alone.tensors) {
      EXPECT_TRUE(copy_of(tensor.data) == copy_of(rank.state.tensors.at(fqn).data)) << fqn;
    }
  });
}

TEST_F(RowExchanges, TravelOnMessagesAlone) {
  auto const mesh = make_mesh(4, 2, 2);
  auto const exchange = [&](Communicator& world) {
    auto rank = make_rank(source_, mesh, world.rank());
    exchange_rows(rank.state, rank.plan, &rank.sums, {}, world);
    expect_as_alone(rank);
  };
  run_ranks(4, exchange, {.offers = Offers::messages});
}

// Among tensors that are exchanged, one whose experts are divided whole.
TEST_F(RowExchanges, LeaveToEachRankWhatItHoldsOtherwiseThanTheMeshSays) {
  auto const mesh = make_mesh(2, 1, 2);
  auto const whole = load(source_, make_mesh(1), MeshCoordinate{});
  std::string const other = "model.language_model.layers.1.mlp.experts.gate_and_up_projs";
  auto const all = copy_of(whole.tensors.at(other).data);
  auto const expert = all.size() / 5;
  run_ranks(2, [&](Communicator& world) {
    auto const alone = load(source_, mesh, mesh.coordinate(world.rank()));
    auto state = load(source_, mesh, mesh.coordinate(world.rank()));
    auto& divided = state.tensors.at(other);
    Range const experts = world.rank() == 0 ? Range{0, 2} : Range{2, 5};
    divided.local_shape = {experts.size(), divided.parameter.shape[1], divided.parameter.shape[2]};
    divided.offsets = {experts.begin, 0, 0};
    divided.placements.clear();
    divided.data = allocate_host(experts.size() * expert);
    for (auto const& [fqn, tensor] : state.tensors) fill(tensor.data, Bytes(tensor.data.bytes, std::byte{0xa5}));
    auto const report = rankslice::fill(state, world, {.dense = DenseReading::once});
    EXPECT_GT(report.bytes_received, 0U);
    EXPECT_TRUE(std::ranges::equal(divided.data.span(),
                                   std::span(all).subspan(experts.begin * expert, experts.size() * expert)));
    for (auto const& [fqn, tensor] : alone.tensors) {
      if (fqn == other) continue;
      EXPECT_TRUE(copy_of(tensor.data) == copy_of(state.tensors.at(fqn).data)) << fqn;
    }
    for (auto const& mismatch : verify(state, world).mismatches) ADD_FAILURE() << mismatch.what;
  });
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

TEST_F(RowExchanges, ARankThatCannotReadEndsAllWithItsErrorWhereverThatIs) {
  auto const& files = source_->storage.files;
  for (auto const& mesh : {make_mesh(2, 1, 2), make_mesh(4, 2, 2), make_mesh(4, 1, 2)}) {
    for (int failing = 0; failing < mesh.ranks(); ++failing) {
      for (auto const share : {0, 3, 6}) {  // tenths of the file
        SCOPED_TRACE(fmt::format("rank {} of {}, at {}/10", failing, mesh.ranks(), share));
        auto const from = files.front().size / 10 * static_cast<std::uint64_t>(share);
        auto const open = [&](std::string const& path) -> std::unique_ptr<FileReader> {
          return std::make_unique<FaultyReader>(open_reader(path), ReadFaults{.fails_at = from});
        };
        auto const thrown = thrown_with(mesh, {.rank = failing, .open = open});
        expect_same_error(thrown, ExitCode::io, failing, files.front().name);
      }
    }
  }
}

TEST_F(RowExchanges, AreInterruptedAfterTheBlockInWhichARankIsAskedToStop) {
  auto const mesh = make_mesh(4, 1, 2);
  for (auto const block : {1, 2, 9}) {
    std::stop_source stop;
    int blocks = 0;
    auto const watched = watch({.stop = stop.get_token()}, "load", 0, nullptr);
    auto const thrown = thrown_with(mesh, {.rank = 3, .done = [&](std::uint64_t bytes) {
                                             if (++blocks == block) stop.request_stop();
                                             watched(bytes);
                                           }});
    expect_same_error(thrown, ExitCode::interrupted, 3, "stopped on request");
    EXPECT_EQ(blocks, block) << "nothing more is read";
  }
}

TEST_F(RowExchanges, AFileThatChangesMeanwhileIsAnErrorOfAll) {
  auto const& file = source_->storage.files.front();
  std::atomic<bool> changed = false;
  auto const thrown = thrown_with(make_mesh(2, 1, 2), {.rank = 1, .done = [&](std::uint64_t) {
                                                         if (!changed.exchange(true))
                                                           flip_byte(file.path, file.size - 1);
                                                       }});
  for (auto const& each : thrown) EXPECT_THROW(std::rethrow_exception(each), IoError);
}

TEST_F(RowExchanges, ADeviceThatFailsEndsAllWithItsError) {
  auto const mesh = make_mesh(2, 1, 2);
  for (auto const call : {0U, 1U, 7U, 30U}) {
    auto const device = std::make_shared<LateDevice>();
    auto const thrown = exceptions_of_ranks(2, [&](Communicator& world) {
      auto rank = make_rank(source_, mesh, world.rank(), world.rank() == 1 ? device : nullptr);
      if (world.rank() == 1) device->calls_until_failure = call;
      exchange_rows(rank.state, rank.plan, &rank.sums, {}, world);
    });
    expect_same_error(thrown, ExitCode::unavailable, 1, "late:0");
  }
}

// Of values and of digests that travel.
TEST_F(RowExchanges, ABitThatFlipsOnTheWayIsADifferenceBetweenWhatWasReadAndWhatIsHeld) {
  auto const mesh = make_mesh(2, 1, 2);
  for (auto const effect : {TransitFault::Effect::flip_given, TransitFault::Effect::flip_taken}) {
    auto const call = effect == TransitFault::Effect::flip_given ? CallKind::send : CallKind::receive;
    for (auto const bit : {0ULL, 12'345ULL, ~0ULL}) {
      std::atomic<int> differ = 0;
      run_ranks(2, [&](Communicator& inner) {
        auto rank = make_rank(source_, mesh, inner.rank());
        MisbehavingCommunicator world(inner, inner.rank() == 1
                                                 ? TransitFault{.effect = effect, .call = call, .number = 5, .bit = bit}
                                                 : TransitFault{});
        exchange_rows(rank.state, rank.plan, &rank.sums, {}, world);
        EXPECT_EQ(world.struck(), inner.rank() == 1);
        auto const& model = source_->model;
        for (auto const index : rank.plan.parameters) {
          auto const& tensor = rank.state.tensors.at(model.parameters[index].fqn);
          ParameterDigest digest(model, model.parameters[index]);
          Digests held(model);
          for_each_run(model.parameters[index], tensor.slice(), [&](Slice const& run) {
            auto const begin = bytes_before(model.parameters[index], tensor.slice(), run);
            auto const bytes = tensor.data.span().subspan(begin, model.parameters[index].bytes(run, Form::native));
            digest.add_native(first_element(model.parameters[index], run), bytes, held);
          });
          for (auto const part : model.parameters[index].tensors) {
            if (!std::ranges::equal(held.source.of(part), rank.sums.source.of(part))) ++differ;
          }
        }
      });
      EXPECT_EQ(differ, 1) << bit;
    }
  }
}

TEST_F(RowExchanges, ACommunicatorThatCannotSendIsRefusedOnAllRanksTogether) {
  auto const mesh = make_mesh(2, 1, 2);
  auto const exchange = [&](Communicator& world) {
    auto rank = make_rank(source_, mesh, world.rank());
    exchange_rows(rank.state, rank.plan, &rank.sums, {}, world);
  };
  auto const thrown = exceptions_of_ranks(2, exchange, {.offers = Offers::collectives});
  for (auto const& each : thrown) EXPECT_THROW(std::rethrow_exception(each), UsageError);
}

/// Gives up waiting at one of its calls.
class Broken final : public ForwardingCommunicator {
 public:
  Broken(Communicator& next, int call) : ForwardingCommunicator(next), calls_left_(call) {}
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    if (calls_left_-- == 0) throw CommError(ExitCode::timeout, "the link is down");
    return next().start_send(bytes, to);
  }

 private:
  int calls_left_;
};

TEST_F(RowExchanges, ARankWhoseCommunicatorFailsGivesUpForAll) {
  auto const mesh = make_mesh(2, 1, 2);
  for (auto const call : {1, 4}) {  // the first is a trial
    std::vector<std::string> heard;
    auto const exchange = [&](Communicator& world) {
      auto rank = make_rank(source_, mesh, world.rank());
      Broken broken(world, call);
      exchange_rows(rank.state, rank.plan, &rank.sums, {}, world.rank() == 1 ? broken : world);
    };
    auto const listen = [&](Collectives& group) {
      group.abort = [&](ExitCode code, std::string const& message) {
        heard.push_back(fmt::format("{}: {}", static_cast<int>(code), message));
      };
    };
    auto const thrown = exceptions_of_ranks(2, exchange, {.change = listen});
    ASSERT_FALSE(heard.empty());
    EXPECT_EQ(heard.front(), "75: the link is down");
    for (auto const& each : thrown) EXPECT_THROW(std::rethrow_exception(each), CommError);
  }
}

}  // namespace
}  // namespace rankslice::test
