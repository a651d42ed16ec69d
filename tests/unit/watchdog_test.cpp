#include "comm/watchdog.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "comm/last_words.hpp"

namespace rankslice {
namespace {

using namespace std::chrono_literals;
using std::this_thread::sleep_for;

class WatchdogDeathTest : public testing::Test {
 protected:
  // Threads run in the process that dies: start it afresh rather than fork it.
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(WatchdogDeathTest, EndsAProcessThatIsStuckInAStep) {
  EXPECT_EXIT(
      {
        Watchdog dog(200ms, "rank 3 (host h)");
        dog.arm();
        sleep_for(60s);
      },
      testing::ExitedWithCode(75), "^rankslice: error: rank 3 \\(host h\\): no progress within 0\\.2 s\n$");
}

TEST_F(WatchdogDeathTest, EndsItWithTheLineThatTheProgramWantsSaid) {
  EXPECT_EXIT(
      {
        write_last_words_as([](std::string_view message, bool known_now) {
          return fmt::format("<{}, {}>\n", message, known_now ? "now" : "one day");
        });
        Watchdog dog(200ms, "rank 3");
        dog.arm();
        sleep_for(60s);
      },
      testing::ExitedWithCode(75), "^<rank 3: no progress within 0\\.2 s, one day>\n$");
}

TEST(Watchdog, LetsAProcessLiveThatTouchesIt) {
  Watchdog dog(500ms, "rank 0");
  dog.arm();
  for (int i = 0; i < 60; ++i) {
    sleep_for(25ms);
    dog.touch();
  }
}

TEST(Watchdog, SleepsUntilItIsArmedAndOnceItIsDisarmed) {
  Watchdog dog(200ms, "rank 0");
  sleep_for(500ms);
  dog.arm();
  dog.disarm();
  sleep_for(500ms);
}

TEST(Watchdog, GivesTheWholePatienceAgainWhenItIsArmedAgain) {
  Watchdog dog(500ms, "rank 0");
  for (int i = 0; i < 5; ++i) {
    dog.arm();
    sleep_for(250ms);
    dog.disarm();
  }
}

}  // namespace
}  // namespace rankslice
