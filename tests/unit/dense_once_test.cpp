// Dense tensors that all ranks read once together: what each holds, and what it knows of what was read, is what it
// would be if each had read all of them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/load.hpp"
#include "rankslice/verify.hpp"

#include "plan/dense_shares.hpp"
#include "support/counting_communicator.hpp"
#include "support/device_bytes.hpp"
#include "support/divided_state.hpp"
#include "support/late_device.hpp"
#include "support/local_parts.hpp"
#include "support/misbehaving_communicator.hpp"
#include "support/refusal.hpp"
#include "support/temp_dir.hpp"
#include "support/thread_world.hpp"
#include "synth/synth.hpp"

namespace rankslice::test {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::Field;
using testing::HasSubstr;

using Source = std::shared_ptr<Checkpoint const>;

struct Case {
  std::string name;
  SynthOptions checkpoint;
  OpenOptions open{};
  KeySelection keys{};
};

void PrintTo(Case const& example, std::ostream* out) { *out << example.name; }

SynthOptions small(SynthOptions options) {
  options.layers = 1;
  options.experts = 3;
  return options;
}

std::vector<Case> cases() {
  auto const fp8 = small({.quantization = SynthQuantization::fp8});
  return {
      {.name = "qwen3_5_moe", .checkpoint = small({})},
      {.name = "qwen3_vl_moe", .checkpoint = small({.family = "qwen3_vl_moe"})},
      {.name = "qwen3_next_with_parameters_held_in_F32", .checkpoint = small({.family = "qwen3_next"})},
      {.name = "fp8", .checkpoint = fp8},
      {.name = "fp8_as_float32", .checkpoint = fp8, .open = {.dtype = DType::F32}},
      {.name = "as_float16", .checkpoint = small({}), .open = {.dtype = DType::F16}},
      {.name = "some", .checkpoint = small({}), .keys = key_selection(".*layers.0.*", ".*mlp.gate.*")},
  };
}

void expect_same(StateDict const& expected, StateDict const& found) {
  ASSERT_EQ(expected.tensors.size(), found.tensors.size());
  for (auto const& [fqn, tensor] : expected.tensors) {
    EXPECT_TRUE(copy_of(tensor.data) == copy_of(found.tensors.at(fqn).data)) << fqn;
  }
  EXPECT_TRUE(std::ranges::equal(expected.read.source.values(), found.read.source.values()));
  EXPECT_TRUE(std::ranges::equal(expected.read.stored.values(), found.read.stored.values()));
  EXPECT_EQ(expected.read.without_codes, found.read.without_codes);
}

class DenseOnce : public testing::TestWithParam<Case> {
 protected:
  DenseOnce() {
    synthesize(dir_.file("checkpoint"), GetParam().checkpoint);
    source_ = open_checkpoint(dir_.file("checkpoint"), GetParam().open);
  }

  TempDir dir_;
  Source source_;
};

TEST_P(DenseOnce, EveryRankHoldsAndKnowsWhatItWouldHaveReadItself) {
  auto const model = GetParam().keys ? select_tensors(source_, GetParam().keys)->model : source_->model;
  for (int const ranks : {1, 2, 3, 5, 8}) {
    auto const mesh = make_mesh(ranks, ranks % 2 == 0 ? ranks / 2 : ranks);
    run_ranks(ranks, [&](Communicator& inner) {
      CountedBytes counted;
      CountingCommunicator world(inner, counted);
      auto const alone = load(source_, mesh, mesh.coordinate(world.rank()), {.keys = GetParam().keys});
      Progress last;
      auto const state = load(source_, mesh, world,
                              {.keys = GetParam().keys,
                               .dense = DenseReading::once,
                               .call = {.progress = [&](Progress const& progress) { last = progress; }}});
      expect_same(alone, state);
      auto const rank = static_cast<std::size_t>(world.rank());
      auto const planned = dense_traffic(model, Form::hf, mesh, DenseReading::once)[rank];
      EXPECT_EQ(counted.sent, planned.sent);
      auto const read = make_load_plan(model, Form::hf, mesh, world.rank(), DenseReading::once).bytes_read;
      EXPECT_EQ(last.done, read + planned.received);
      EXPECT_EQ(last.total, last.done);
    });
  }
}

TEST_P(DenseOnce, WhatWasLoadedSoIsProvedAtEveryLevel) {
  for (auto const level : {VerifyLevel::off, VerifyLevel::coverage, VerifyLevel::full, VerifyLevel::reread}) {
    run_ranks(3,
              [&](Communicator& world) {
                auto const mesh = make_mesh(3);
                auto const state = load(source_, mesh, world, {.verify = level, .dense = DenseReading::once});
                auto const report = verify(state, world, {.level = level});
                EXPECT_TRUE(report.ok()) << name(level);
                if (!digests(level)) return;
                EXPECT_TRUE(verify(state, {.level = level}).ok()) << "alone, " << name(level);
              },
              {.hosts = {"a", "b", "a"}});
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, DenseOnce, testing::ValuesIn(cases()),
                         [](auto const& instance) { return instance.param.name; });

// ---- what is chosen ----

class DenseOnceOfTiny : public testing::Test {
 protected:
  DenseOnceOfTiny() {
    synthesize(dir.file("checkpoint"), small({}));
    source = open_checkpoint(dir.file("checkpoint"));
  }

  TempDir dir;
  Source source;
};

TEST_F(DenseOnceOfTiny, ByItselfItIsDoneWhereRanksAreOnSeveralHosts) {
  auto const sent_with = [&](DenseReading asked, std::vector<std::string> const& hosts, Offers offers) {
    std::uint64_t sent = 0;
    run_ranks(2,
              [&](Communicator& inner) {
                CountedBytes counted;
                CountingCommunicator world(inner, counted);
                (void)load(source, make_mesh(2), world, {.dense = asked});
                if (world.rank() == 0) sent = counted.sent;
              },
              {.offers = offers, .hosts = hosts});
    return sent;
  };
  EXPECT_GT(sent_with(DenseReading::automatic, {"a", "b"}, Offers::everything), 0U);
  EXPECT_EQ(sent_with(DenseReading::automatic, {"a", "a"}, Offers::everything), 0U);
  EXPECT_EQ(sent_with(DenseReading::automatic, {"a", "b"}, Offers::collectives), 0U);
  EXPECT_GT(sent_with(DenseReading::once, {"a", "a"}, Offers::everything), 0U);
  EXPECT_EQ(sent_with(DenseReading::each_rank, {"a", "b"}, Offers::everything), 0U);
}

TEST_F(DenseOnceOfTiny, IsRefusedWhereNothingCanBeSentAndToOneRankAlone) {
  run_ranks(2,
            [&](Communicator& world) {
              auto const refused =
                  refusal_of([&] { (void)load(source, make_mesh(2), world, {.dense = DenseReading::once}); });
              EXPECT_EQ(refused.code, ExitCode::usage);
              EXPECT_THAT(refused.message, HasSubstr("only where ranks can send to one another"));
            },
            {.offers = Offers::collectives});
  auto const refused = refusal_of([&] { (void)load(source, make_mesh(2), {}, {.dense = DenseReading::once}); });
  EXPECT_EQ(refused.code, ExitCode::usage);
  EXPECT_THAT(refused.message, HasSubstr("not by one alone"));
}

TEST_F(DenseOnceOfTiny, RanksThatAreToldDifferentThingsAreRefused) {
  run_ranks(2, [&](Communicator& world) {
    auto const dense = world.rank() == 0 ? DenseReading::once : DenseReading::each_rank;
    auto const refused = refusal_of([&] { (void)load(source, make_mesh(2), world, {.dense = dense}); });
    EXPECT_EQ(refused.code, ExitCode::usage);
    EXPECT_THAT(refused.message, HasSubstr("dense each-rank"));
  });
}

// ---- memory of others ----

TEST_F(DenseOnceOfTiny, TensorsOnDevicesGetTheSameBytes) {
  auto const mesh = make_mesh(3);
  run_ranks(3, [&](Communicator& world) {
    auto const alone = load(source, mesh, mesh.coordinate(world.rank()));
    auto const device = world.rank() == 1 ? nullptr : std::make_shared<LateDevice>();
    auto const state = load(source, mesh, world, {.device = device, .dense = DenseReading::once});
    expect_same(alone, state);
    EXPECT_TRUE(verify(state, world).ok());
  });
}

TEST_F(DenseOnceOfTiny, FillReadsOnceWhatAllHoldWholeAndEachPartOfTheRestByItsOwner) {
  auto const halves = fsdp(2);
  auto const part = [&](Parameter const& parameter, int rank) -> std::optional<Part> {
    auto const turn = parameter.fqn.size() % 3;
    if (turn == 0 && rank == 1) return std::nullopt;  // one rank has none of it
    return turn == 1 && !parameter.stacked_experts ? halves.part(parameter, rank) : whole_part(parameter.shape);
  };
  std::vector<std::uint64_t> read(2), received(2);
  std::uint64_t each = 0;
  run_ranks(2, [&](Communicator& world) {
    auto const mesh = make_mesh(2);
    auto const callers = [&] {
      return CallersTensors(source->model, [&](Parameter const& p) { return part(p, world.rank()); });
    };
    auto const apart = callers(), together = callers();
    auto alone = make_state_dict(source, apart.tensors(), mesh, mesh.coordinate(world.rank()));
    auto state = make_state_dict(source, together.tensors(), mesh, mesh.coordinate(world.rank()));
    auto const by_each = fill(alone, world, {.dense = DenseReading::each_rank});
    auto const report = fill(state, world, {.dense = DenseReading::once});
    expect_same(alone, state);
    for (auto const& [fqn, tensor] : state.tensors) {
      EXPECT_TRUE(together.memory(fqn).surroundings_untouched()) << fqn;
    }
    auto const rank = static_cast<std::size_t>(world.rank());
    read[rank] = report.bytes_read;
    received[rank] = report.bytes_received;
    if (rank == 0) each = by_each.bytes_read;
  });
  EXPECT_LT(read[0], each);
  EXPECT_GT(received[0], 0U);
  EXPECT_EQ(each - read[0], received[0]);  // in BF16 as it stands in the files
}

// ---- what goes wrong ----

/// How many calls of rank 1 a load by three ranks makes.
unsigned calls_of_load(Source const& source, CallKind call) {
  unsigned calls = 0;
  run_ranks(3, [&](Communicator& inner) {
    MisbehavingCommunicator world(inner, {});
    (void)load(source, make_mesh(3), world, {.dense = DenseReading::once});
    if (inner.rank() == 1) calls = world.calls(call);
  });
  return calls;
}

/// What verifying then finds on each rank when one of those calls has a fault.
std::vector<Mismatch> mismatches_with(Source const& source, TransitFault const& fault) {
  std::vector<Mismatch> mismatches;
  run_ranks(3, [&](Communicator& inner) {
    MisbehavingCommunicator world(inner, inner.rank() == 1 ? fault : TransitFault{});
    auto const state = load(source, make_mesh(3), world, {.dense = DenseReading::once});
    EXPECT_EQ(world.struck(), inner.rank() == 1);
    auto const report = verify(state, inner);
    if (inner.rank() == 0) mismatches = report.mismatches;
  });
  return mismatches;
}

TEST_F(DenseOnceOfTiny, ABitThatFlipsInTheRingIsFoundAndTheRankNamedThatHoldsIt) {
  using Effect = TransitFault::Effect;
  for (auto const& [effect, call] :
       {std::pair(Effect::flip_given, CallKind::send), std::pair(Effect::flip_taken, CallKind::receive)}) {
    auto const calls = calls_of_load(source, call);
    EXPECT_GE(calls, 2U);
    for (unsigned number = 0; number < calls; ++number) {
      auto const found = mismatches_with(source, {.effect = effect, .call = call, .number = number, .bit = 12345});
      // And whoever it passed it on to.
      EXPECT_THAT(found, Contains(Field(&Mismatch::rank, effect == Effect::flip_given ? 2 : 1))) << number;
      EXPECT_THAT(found, Each(Field(&Mismatch::what, AllOf(HasSubstr("read digest"), HasSubstr("held"))))) << number;
    }
  }
}

TEST_F(DenseOnceOfTiny, ABitThatFlipsInTheSumOfTheirDigestsIsFound) {
  auto const sums = calls_of_load(source, CallKind::all_reduce);
  ASSERT_GT(sums, 0U);
  for (auto const effect : {TransitFault::Effect::flip_given, TransitFault::Effect::flip_taken}) {
    EXPECT_FALSE(mismatches_with(source, {.effect = effect, .call = CallKind::all_reduce, .number = sums - 1, .bit = 7})
                     .empty());
  }
}

TEST_F(DenseOnceOfTiny, ARankThatFailsWhileReadingEndsAllWithItsError) {
  std::filesystem::copy(dir.file("checkpoint"), dir.file("of rank 1"));
  run_ranks(4, [&](Communicator& world) {
    auto const mine = open_checkpoint(dir.file(world.rank() == 1 ? "of rank 1" : "checkpoint"));
    auto const cut = mine->catalog.files[0];
    if (world.rank() == 1) std::filesystem::resize_file(cut.path, cut.size - 1);
    auto const refused = refusal_of([&] { (void)load(mine, make_mesh(4), world, {.dense = DenseReading::once}); });
    EXPECT_EQ(refused.code, ExitCode::bad_data);
    EXPECT_THAT(refused.message, HasSubstr("of rank 1/"));
  });
}

TEST_F(DenseOnceOfTiny, StoppingOneRankStopsAllWhileTheyReadAndWhileTheyPassOn) {
  for (unsigned stop_after : {0U, 3U, 1000U}) {
    std::atomic<unsigned> stopped = 0;
    run_ranks(3, [&](Communicator& world) {
      unsigned blocks = 0;
      auto const count = [&](Progress const& progress) {
        auto const last = progress.done == progress.total;  // what comes last is what others sent
        if (world.rank() == 2 && (blocks++ == stop_after || last)) throw Interrupted();
      };
      auto const mesh = make_mesh(3);
      try {
        (void)load(source, mesh, world, {.dense = DenseReading::once, .call = {.progress = count}});
        ADD_FAILURE() << "loaded";
      } catch (Interrupted const&) {
        ++stopped;
      }
    });
    EXPECT_EQ(stopped, 3U);
  }
}

}  // namespace
}  // namespace rankslice::test
