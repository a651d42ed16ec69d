#include "comm/control.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace rankslice {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr auto kTimeout = 3000ms;
constexpr auto kInterval = 300ms;  // a tenth of it
constexpr auto kPoll = 50ms;

ControlMessage sign(ControlKind kind) { return {.kind = kind, .agreement = 0, .outcome = {}}; }

ControlMessage outcome(ControlKind kind, std::uint64_t agreement, Outcome const& outcome) {
  return {.kind = kind, .agreement = agreement, .outcome = outcome};
}

struct Sent {
  milliseconds when{};
  int to = 0;
  ControlMessage message;
};

/// One rank's end of a channel, at whose other end nobody but a script is. The clock goes on by `kPoll` whenever the
/// rank looks in vain for messages.
class ScriptedChannel final : public ControlChannel {
 public:
  ScriptedChannel(int rank, int size) : rank_(rank), size_(size) {}

  /// In the order of time.
  void hear(milliseconds when, int from, ControlMessage const& message) {
    script_.push_back({when, {.from = from, .bytes = encode(message)}});
  }
  /// `kind` from `from` at every interval of [begin, end).
  void hear_signs(milliseconds begin, milliseconds end, int from, ControlKind kind) {
    for (auto when = begin; when < end; when += kInterval) hear(when, from, sign(kind));
  }
  void sort() {
    std::stable_sort(script_.begin(), script_.end(), [](auto const& a, auto const& b) { return a.first < b.first; });
  }

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  void send(int to, std::vector<std::byte> message) override { sent.push_back({now, to, decode(message)}); }
  [[nodiscard]] bool sending(int to) override { return stuck.contains(to); }
  [[nodiscard]] std::optional<ControlArrival> receive() override {
    if (script_.empty() || script_.front().first > now) {
      now += kPoll;
      return std::nullopt;
    }
    auto arrival = script_.front().second;
    script_.pop_front();
    return arrival;
  }
  [[nodiscard]] bool has_left(int rank) const override { return left.contains(rank); }
  [[noreturn]] void abort(ExitCode code, std::string const& message) override { throw CommError(code, message); }

  milliseconds now{};
  std::set<int> stuck;  ///< Ranks to which nothing gets through.
  std::set<int> left;
  std::vector<Sent> sent;

 private:
  int rank_;
  int size_;
  std::deque<std::pair<milliseconds, ControlArrival>> script_;
};

class ControlTest : public testing::Test {
 protected:
  Control& control_of(int rank, int size) { return make(channel, control, rank, size); }
  /// Of the same rank, in what its communicator was split from.
  Control& parent_of(int rank, int size) { return make(parent_channel, parent, rank, size); }

  Control& make(std::optional<ScriptedChannel>& new_channel, std::optional<Control>& new_control, int rank, int size) {
    new_channel.emplace(rank, size);
    std::vector<RankName> names;
    for (int r = 0; r < size; ++r) names.push_back({r, fmt::format("h{}", r)});
    return new_control.emplace(*new_channel, family, names, kTimeout, nullptr,
                               [&] { return Control::Clock::time_point(new_channel->now); });
  }

  /// What the control said as it gave up.
  template <typename Wait>
  std::string last_words(Wait const& wait) {
    channel->sort();
    try {
      wait();
    } catch (CommError const& error) {
      EXPECT_EQ(error.code, ExitCode::timeout);
      return error.what();
    }
    return "nothing";
  }
  std::string last_words_of_agreement() {
    return last_words([&] { std::ignore = control->agree({}); });
  }
  std::string last_words_of_wait() {
    return last_words([&] { control->wait_until([] { return false; }); });
  }

  [[nodiscard]] std::vector<milliseconds> sent(ControlKind kind, int to) const { return sent(*channel, kind, to); }
  [[nodiscard]] static std::vector<milliseconds> sent(ScriptedChannel const& by, ControlKind kind, int to) {
    std::vector<milliseconds> when;
    for (auto const& each : by.sent) {
      if (each.message.kind == kind && each.to == to) when.push_back(each.when);
    }
    return when;
  }

  ControlFamily family;
  std::optional<ScriptedChannel> channel, parent_channel;
  std::optional<Control> control, parent;
};

TEST_F(ControlTest, AgreesAsSoonAsTheLastCheckInIsThere) {
  control_of(0, 3);
  channel->hear(100ms, 2, outcome(ControlKind::check_in, 0, {}));
  channel->hear(700ms, 1, outcome(ControlKind::check_in, 0, {ExitCode::io, 1, "full", "f", ""}));
  auto const agreed = control->agree({});
  EXPECT_EQ(agreed.rank, 1);
  EXPECT_EQ(agreed.message, "full");
  EXPECT_THAT(sent(ControlKind::verdict, 1),
              ElementsAre(testing::AllOf(testing::Ge(700ms), testing::Le(700ms + 2 * kPoll))));
  EXPECT_EQ(sent(ControlKind::verdict, 1), sent(ControlKind::verdict, 2));
}

TEST_F(ControlTest, ARankWithoutAWordIsNamedAtTheDeadline) {
  control_of(0, 3);
  channel->hear(100ms, 2, outcome(ControlKind::check_in, 0, {}));
  EXPECT_EQ(last_words_of_agreement(), "no answer from rank(s) 1 (host h1) within 3.0 s");
  EXPECT_GE(channel->now, kTimeout);
  EXPECT_LE(channel->now, kTimeout + 3 * kPoll);
}

TEST_F(ControlTest, ARankThatWorksIsWaitedForHoweverLongItTakes) {
  control_of(0, 2);
  channel->hear_signs(0ms, 3 * kTimeout, 1, ControlKind::working);
  channel->hear(3 * kTimeout, 1, outcome(ControlKind::check_in, 0, {}));
  EXPECT_EQ(control->agree({}).code, ExitCode::done);
}

TEST_F(ControlTest, TheDeadlineCountsFromTheLastSignOfWork) {
  control_of(0, 2);
  channel->hear_signs(0ms, 2 * kTimeout, 1, ControlKind::working);
  EXPECT_EQ(last_words_of_agreement(), "no answer from rank(s) 1 (host h1) within 3.0 s");
  EXPECT_GE(channel->now, 3 * kTimeout - kInterval);
  EXPECT_LE(channel->now, 3 * kTimeout);
}

TEST_F(ControlTest, ARankThatWaitsForAWorkingOneInsideItsStepIsAlive) {
  control_of(0, 3);
  channel->hear_signs(0ms, 3 * kTimeout, 1, ControlKind::waiting);
  channel->hear_signs(0ms, 3 * kTimeout, 2, ControlKind::working);
  channel->hear(3 * kTimeout, 1, outcome(ControlKind::check_in, 0, {}));
  channel->hear(3 * kTimeout, 2, outcome(ControlKind::check_in, 0, {}));
  channel->sort();
  EXPECT_EQ(control->agree({}).code, ExitCode::done);
}

TEST_F(ControlTest, ASilentRankIsNamedAndNotTheOneThatWaitsForIt) {
  control_of(0, 3);
  channel->hear_signs(0ms, 3 * kTimeout, 1, ControlKind::waiting);
  EXPECT_EQ(last_words_of_agreement(), "no answer from rank(s) 2 (host h2) within 3.0 s");
}

TEST_F(ControlTest, RanksThatAllWaitForEachOtherAreToldSo) {
  control_of(0, 3);
  channel->hear_signs(0ms, 3 * kTimeout, 1, ControlKind::waiting);
  channel->hear_signs(0ms, 3 * kTimeout, 2, ControlKind::waiting);
  EXPECT_THAT(last_words_of_agreement(), HasSubstr("the ranks wait for each other"));
  EXPECT_LE(channel->now, kTimeout + 3 * kPoll);
}

TEST_F(ControlTest, RanksThatDiedTogetherAreNamedTogether) {
  // Their last signs came up to an interval apart; rank 3 goes on.
  control_of(0, 4);
  channel->hear_signs(0ms, 3 * kTimeout, 3, ControlKind::working);
  channel->hear(600ms, 1, sign(ControlKind::working));
  channel->hear(850ms, 2, sign(ControlKind::working));
  EXPECT_EQ(last_words_of_agreement(), "no answer from rank(s) 1-2 (hosts h1, h2) within 3.0 s");
  EXPECT_LT(channel->now, 850ms + kTimeout);
}

TEST_F(ControlTest, InACollectiveCallOnlyTheSilentAreNamed) {
  control_of(0, 4);
  channel->hear_signs(0ms, 3 * kTimeout, 1, ControlKind::waiting);
  channel->hear_signs(0ms, 3 * kTimeout, 3, ControlKind::waiting);
  EXPECT_EQ(last_words_of_wait(), "no answer from rank(s) 2 (host h2) within 3.0 s");
}

TEST_F(ControlTest, ARankThatHasCheckedInIsNotTheOneThatRank0ReceivesNothingFrom) {
  control_of(0, 3);
  channel->hear(100ms, 1, outcome(ControlKind::check_in, 0, {}));
  EXPECT_EQ(last_words_of_wait(), "no answer from rank(s) 2 (host h2) within 3.0 s");
}

TEST_F(ControlTest, ACollectiveCallWaitsAsLongAsAnyRankWorks) {
  control_of(0, 3);
  channel->hear_signs(0ms, 3 * kTimeout, 1, ControlKind::waiting);
  channel->hear_signs(0ms, 3 * kTimeout, 2, ControlKind::working);
  channel->sort();
  control->wait_until([&] { return channel->now >= 3 * kTimeout; });
  EXPECT_GE(channel->now, 3 * kTimeout);
}

TEST_F(ControlTest, AnotherRankWaitsAsLongAsRank0KeepsWatch) {
  control_of(2, 3);
  channel->hear_signs(0ms, 2 * kTimeout, 0, ControlKind::watching);
  EXPECT_EQ(last_words_of_agreement(), "no answer from rank(s) 0 (host h0) within 3.0 s");
  // Later than rank 0, which knows the names, would have spoken; and after rank 1.
  EXPECT_GE(channel->now, 3 * kTimeout - kInterval + 1s + 3s);
  EXPECT_LT(channel->now, 3 * kTimeout - kInterval + 1s + 3s + 200ms);
}

TEST_F(ControlTest, SignsOfWorkGoOutOncePerInterval) {
  control_of(1, 2);
  for (channel->now = 0ms; channel->now < 3 * kInterval; channel->now += 50ms) control->progress();
  EXPECT_THAT(sent(ControlKind::working, 0), ElementsAre(0ms, kInterval, 2 * kInterval));
}

TEST_F(ControlTest, Rank0TellsTheWaitingAndOnlyThemThatItKeepsWatch) {
  control_of(0, 3);
  channel->hear(0ms, 2, sign(ControlKind::waiting));
  for (int i = 0; i < 8; ++i, channel->now += 100ms) control->progress();
  EXPECT_THAT(sent(ControlKind::watching, 1), IsEmpty());
  EXPECT_EQ(sent(ControlKind::watching, 2).size(), 3U);
}

TEST_F(ControlTest, ARankThatWaitsInAPartSaysSoInTheWhole) {
  parent_of(1, 3);
  control_of(1, 2);
  control->wait_until([&] { return channel->now >= kTimeout; });
  EXPECT_EQ(sent(*parent_channel, ControlKind::waiting, 0).size(), kTimeout / kInterval);
}

TEST_F(ControlTest, ARankThatWaitsInTheWholeSaysSoInThePart) {
  parent_of(1, 3);
  control_of(1, 2);
  parent->wait_until([&] { return parent_channel->now >= kTimeout; });
  EXPECT_EQ(sent(ControlKind::waiting, 0).size(), kTimeout / kInterval);
}

TEST_F(ControlTest, ARankThatWorksForTheWholeIsHeardInThePart) {
  parent_of(2, 3);
  control_of(1, 2);
  parent->progress();
  EXPECT_THAT(sent(ControlKind::working, 0), ElementsAre(0ms));
}

TEST_F(ControlTest, Rank0OfAPartKeepsWatchOverItWhileItWorksForTheWhole) {
  parent_of(0, 3);
  control_of(0, 2);
  channel->hear(0ms, 1, sign(ControlKind::waiting));
  parent->progress();
  EXPECT_THAT(sent(ControlKind::watching, 1), ElementsAre(testing::_));
}

TEST_F(ControlTest, Rank0OfTheWholeHearsWhoWaitsWhileItWaitsInAPart) {
  parent_of(0, 3);
  control_of(0, 2);
  channel->hear_signs(0ms, 2 * kTimeout, 1, ControlKind::working);
  channel->sort();
  parent_channel->hear(0ms, 2, sign(ControlKind::waiting));
  control->wait_until([&] { return channel->now >= kTimeout; });
  EXPECT_THAT(sent(*parent_channel, ControlKind::watching, 1), IsEmpty());
  EXPECT_EQ(sent(*parent_channel, ControlKind::watching, 2).size(), kTimeout / kInterval);
}

TEST_F(ControlTest, SignsInTheWholeDoNotHideWhoIsSilentInAPart) {
  parent_of(1, 3);
  control_of(1, 2);
  parent_channel->hear_signs(0ms, 3 * kTimeout, 0, ControlKind::watching);
  EXPECT_EQ(last_words_of_wait(), "no answer from rank(s) 0 (host h0) within 3.0 s");
}

TEST_F(ControlTest, PartsAndTheWholeMayOutliveEachOther) {
  parent_of(1, 3);
  control_of(1, 2);
  parent.reset();
  control->wait_until([&] { return channel->now >= kTimeout; });
  EXPECT_THAT(parent_channel->sent, IsEmpty());
  parent_of(1, 3);
  control.reset();
  channel->sent.clear();
  parent->progress();
  EXPECT_THAT(channel->sent, IsEmpty());
  EXPECT_THAT(sent(*parent_channel, ControlKind::working, 0), ElementsAre(0ms));
}

TEST_F(ControlTest, NoSignGoesToOneWhoHasLeft) {
  control_of(1, 2);
  channel->left = {0};
  control->progress();
  EXPECT_THAT(channel->sent, IsEmpty());
}

TEST_F(ControlTest, NoSignFollowsOneThatHasNotLeftYet) {
  control_of(1, 2);
  channel->stuck = {0};
  control->progress();
  EXPECT_THAT(channel->sent, IsEmpty());
}

TEST_F(ControlTest, RanksThatDoNotTakeTheirVerdictAreNamed) {
  control_of(0, 3);
  channel->hear(0ms, 1, outcome(ControlKind::check_in, 0, {}));
  channel->hear(0ms, 2, outcome(ControlKind::check_in, 0, {}));
  channel->stuck = {2};
  EXPECT_EQ(last_words_of_agreement(), "no answer from rank(s) 2 (host h2) within 3.0 s");
}

TEST_F(ControlTest, NobodyWaitsForTheWordOfOneWhoHasLeft) {
  control_of(0, 3);
  channel->left = {2};
  EXPECT_EQ(last_words_of_agreement(), "rank 2 (host h2) left while others wait for it");
  EXPECT_LE(channel->now, 2 * kPoll);
  control_of(2, 3);
  channel->left = {0, 1};
  EXPECT_EQ(last_words_of_agreement(), "rank 0 (host h0) left while others wait for it");
  EXPECT_LE(channel->now, 2 * kPoll);
}

TEST_F(ControlTest, WhoLeftAfterItsWordIsNotMissed) {
  control_of(0, 3);
  channel->hear(0ms, 1, outcome(ControlKind::check_in, 0, {}));
  channel->hear(200ms, 2, outcome(ControlKind::check_in, 0, {}));
  channel->left = {1};
  EXPECT_EQ(control->agree({}).code, ExitCode::done);
}

TEST_F(ControlTest, AnEarlyCheckInCountsForTheNextAgreementOnly) {
  control_of(0, 3);
  channel->hear(0ms, 1, outcome(ControlKind::check_in, 0, {ExitCode::io, 1, "old", "", ""}));
  channel->hear(0ms, 2, outcome(ControlKind::check_in, 0, {}));
  EXPECT_EQ(control->agree({}).message, "old");
  channel->hear(0ms, 1, outcome(ControlKind::check_in, 1, {}));
  control->listen();  // while rank 0 does something else
  channel->hear(0ms, 2, outcome(ControlKind::check_in, 1, {}));
  EXPECT_EQ(control->agree({}).code, ExitCode::done);
}

TEST_F(ControlTest, RanksThatDoNotMakeTheSameCallsAreFound) {
  control_of(0, 2);
  channel->hear(0ms, 1, outcome(ControlKind::check_in, 1, {}));
  try {
    std::ignore = control->agree({});
    FAIL() << "agreed";
  } catch (CommError const& error) {
    EXPECT_EQ(error.code, ExitCode::unexpected);
    EXPECT_STREQ(error.what(), "agreement 0 met agreement 1: the ranks do not make the same calls");
  }
}

}  // namespace
}  // namespace rankslice
