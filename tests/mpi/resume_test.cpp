// An export and a store that all ranks of a job stop in the middle, and that fewer ranks of it finish.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rankslice/load.hpp"
#include "rankslice/store.hpp"
#include "rankslice/to_hf.hpp"

#include "core/literals.hpp"
#include "recorded_export.hpp"
#include "recorded_store.hpp"
#include "support/job_fixture.hpp"

namespace rankslice::test {
namespace {

class ResumeTest : public JobTest {
 protected:
  /// Calls `run(world, call)` until the job is stopped after so many blocks of rank 0's; every rank hears of it.
  template <typename Call>
  static void interrupt(std::string_view phase, std::uint64_t after, Call const& run) {
    std::uint64_t blocks = 0;
    CallOptions call;
    if (world().rank() == 0) {
      call.progress = [&](Progress const& progress) {
        if (progress.phase == phase && ++blocks == after) throw Interrupted(ExitCode::terminated);
      };
    }
    try {
      run(world(), call);
      ADD_FAILURE() << "was not interrupted";
    } catch (Interrupted const& stopped) {
      EXPECT_EQ(stopped.code, ExitCode::terminated);
    }
  }
  /// Calls `run(world, call)` on all ranks but the last, if there are several: a job of another size.
  template <typename Call>
  static void finish(Call const& run) {
    auto const stays = world().size() == 1 || world().rank() + 1 < world().size();
    auto const smaller = world().split(stays ? 1 : 0);
    if (stays) run(*smaller, CallOptions{});
    barrier(world());
  }
  /// The blocks of rank 0 in a run that nobody stops.
  template <typename Call>
  static std::uint64_t count_blocks(std::string_view phase, Call const& run) {
    std::uint64_t blocks = 0;
    run(world(),
        CallOptions{.progress = [&](Progress const& progress) { blocks += progress.phase == phase ? 1U : 0U; }});
    return blocks;
  }
};

TEST_F(ResumeTest, AnExportGoesOnInAJobOfAnotherSizeThroughOneRankOrAll) {
  for (auto const gather : {false, true}) {
    std::optional<Resumed> resumed;
    auto const run = [&](std::string const& out) {
      return [&, out](Communicator& ranks, CallOptions const& call) {
        ExportOptions const options{.gather = gather, .resume = true, .call = call};
        auto const source = open_checkpoint(checkpoint(), ranks);
        resumed =
            export_checkpoint(*source, path(out), ranks, options, VerifyLevel::reread, {.stage_bytes = 1}).resumed;
      };
    };
    auto const whole = gather ? "gathered_whole" : "whole";
    auto const out = gather ? "gathered" : "out";
    auto const blocks = count_blocks("to_hf", run(whole));
    interrupt("to_hf", std::max<std::uint64_t>(1, blocks * 3 / 4), run(out));
    finish(run(out));
    if (world().rank() != 0) continue;
    EXPECT_TRUE(files_below(path(out)) == files_below(checkpoint()));
    ASSERT_TRUE(resumed);
    EXPECT_GT(resumed->segments, 0U);
  }
}

TEST_F(ResumeTest, AStoreGoesOnInAJobOfAnotherSize) {
  std::optional<Resumed> resumed;
  auto const run = [&](std::string const& out) {
    return [&, out](Communicator& ranks, CallOptions const& call) {
      auto const mesh = make_mesh(ranks.size());
      auto const state = load(open_checkpoint(checkpoint(), ranks), mesh, mesh.coordinate(ranks.rank()));
      SaveOptions const options{.resume = true, .call = call};
      Recording const recording{.stage_bytes = 1, .store_bytes = 1_MiB};
      resumed = save_recorded_store(state, path(out), ranks, options, recording).resumed;
    };
  };
  auto const blocks = count_blocks("store", run("whole.h5"));
  interrupt("store", std::max<std::uint64_t>(1, blocks * 3 / 4), run("out.h5"));
  finish(run("out.h5"));
  if (world().rank() != 0) return;
  auto const stores = files_below(path("."));
  EXPECT_TRUE(stores.at("out.h5") == stores.at("whole.h5"));
  ASSERT_TRUE(resumed);
  EXPECT_GT(resumed->segments, 0U);
}

}  // namespace
}  // namespace rankslice::test
