#include "facts/timeline.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace rankslice {
namespace {

std::vector<std::string> names(Timeline const& timeline) {
  std::vector<std::string> found;
  for (auto const& span : timeline.spans()) found.push_back(span.name);
  return found;
}

void run(Timeline& timeline, std::string const& phase, std::vector<std::uint64_t> const& done) {
  Timeline::Phase open(timeline, phase);
  for (auto const bytes : done) timeline.add_block({.phase = phase, .done = bytes, .total = 100});
  static_cast<void>(open.close());
}

TEST(Timeline, NestsPhasesAndTheirBlocks) {
  Timeline timeline;
  {
    Timeline::Phase outer(timeline, "load");
    run(timeline, "plan", {});
    timeline.add_wait();
    timeline.add_block({.phase = "load", .done = 100, .total = 100});
    static_cast<void>(outer.close());
  }
  EXPECT_EQ(names(timeline), (std::vector<std::string>{"plan", "wait after plan", "load blocks", "load"}));
  auto const& spans = timeline.spans();
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_GE(spans[i].begin_ns, spans[3].begin_ns);
    EXPECT_LE(spans[i].end_ns, spans[3].end_ns);
    EXPECT_LE(spans[i].end_ns, spans[i + 1 < 3 ? i + 1 : i].end_ns);
  }
  EXPECT_GE(spans[2].begin_ns, spans[1].end_ns);
}

TEST(Timeline, CountsBlocksAndTheirBytes) {
  Timeline timeline;
  run(timeline, "store", {30, 30, 70, 100});  // the second call says only that the rank is alive
  EXPECT_EQ(timeline.spans().front().blocks, 3U);
  EXPECT_EQ(timeline.spans().front().bytes, 100U);
}

TEST(Timeline, CountsOnWhereBytesBeginAnew) {
  Timeline timeline;
  run(timeline, "verify", {60, 100, 40, 90});
  EXPECT_EQ(timeline.spans().front().blocks, 4U);
  EXPECT_EQ(timeline.spans().front().bytes, 190U);
}

TEST(Timeline, KeepsBlocksOfOtherNamesApart) {
  Timeline timeline;
  Timeline::Phase open(timeline, "store");
  timeline.add_block({.phase = "verify", .done = 5, .total = 5});
  timeline.add_block({.phase = "store", .done = 7, .total = 7});
  static_cast<void>(open.close());
  EXPECT_EQ(names(timeline), (std::vector<std::string>{"verify blocks", "store blocks", "store"}));
  EXPECT_EQ(timeline.spans()[1].bytes, 7U);
}

TEST(Timeline, KnowsThePhaseThatIsOpen) {
  Timeline timeline;
  EXPECT_EQ(timeline.phase(), "");
  Timeline::Phase outer(timeline, "load");
  {
    Timeline::Phase inner(timeline, "plan");
    EXPECT_EQ(timeline.phase(), "plan");
    static_cast<void>(inner.close());
  }
  EXPECT_EQ(timeline.phase(), "load");
  static_cast<void>(outer.close());
  EXPECT_EQ(timeline.phase(), "");
}

TEST(Timeline, RemembersTheInnermostPhaseThatFailed) {
  Timeline timeline;
  try {
    Timeline::Phase const outer(timeline, "load");
    Timeline::Phase const inner(timeline, "open");
    throw std::runtime_error("no such file");
  } catch (std::runtime_error const&) {
    EXPECT_EQ(timeline.phase(), "open");
  }
  for (auto const& span : timeline.spans()) EXPECT_TRUE(span.failed) << span.name;
  EXPECT_EQ(names(timeline), (std::vector<std::string>{"open", "load"}));
}

TEST(Timeline, ForgetsTheProgressOfAPhaseThatHasEnded) {
  Timeline timeline;
  {
    Timeline::Phase open(timeline, "load");
    timeline.add_block({.phase = "load", .done = 3, .total = 9});
    EXPECT_EQ(timeline.progress().done, 3U);
    EXPECT_EQ(timeline.progress().total, 9U);
    static_cast<void>(open.close());
  }
  EXPECT_EQ(timeline.progress().total, 0U);
}

}  // namespace
}  // namespace rankslice
