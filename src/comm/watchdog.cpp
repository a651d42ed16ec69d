#include "comm/watchdog.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "rankslice/error.hpp"

#include "comm/last_words.hpp"

namespace rankslice {
namespace {

using std::chrono::milliseconds;

constexpr int kTicksOfPatience = 20;
constexpr milliseconds kLongestTick{1000};

}  // namespace

Watchdog::Watchdog(milliseconds patience, std::string const& who)
    : patience_(patience),
      message_(last_words(
          fmt::format("{}: no progress within {:.1f} s", who, std::chrono::duration<double>(patience).count()), false)),
      thread_([this](std::stop_token const& stop) { watch(stop); }) {}

void Watchdog::arm() noexcept {
  touch();
  armed_.store(true, std::memory_order_relaxed);
}

// Counts its own ticks rather than reading a clock: a process that was stopped and goes on (SIGCONT, a debugger) gets
// its whole patience again.
void Watchdog::watch(std::stop_token const& stop) {
  auto const tick = std::clamp(patience_ / kTicksOfPatience, milliseconds(1), kLongestTick);
  std::mutex mutex;
  std::condition_variable_any wakeup;
  std::unique_lock lock(mutex);
  milliseconds quiet{0};
  auto seen = touches_.load(std::memory_order_relaxed);
  while (!wakeup.wait_for(lock, stop, tick, [&] { return stop.stop_requested(); })) {
    auto const touches = touches_.load(std::memory_order_relaxed);
    bool const silent = armed_.load(std::memory_order_relaxed) && touches == seen;
    seen = touches;
    quiet = silent ? quiet + tick : milliseconds(0);
    if (quiet >= patience_) bite();
  }
}

// No destructors, no exit handlers, no stdio: they may need what the stuck thread holds.
void Watchdog::bite() const noexcept {
  [[maybe_unused]] auto const written = write(STDERR_FILENO, message_.data(), message_.size());
  _exit(static_cast<int>(ExitCode::timeout));
}

}  // namespace rankslice
