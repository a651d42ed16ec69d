#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace rankslice {

/// The pauses of a wait that polls: none worth the name at first, for an answer that is nearly there, then sleeps
/// that grow with the wait, so that ranks which share a core leave it to those that work.
class Backoff {
 public:
  using Clock = std::chrono::steady_clock;

  void pause() {
    if (yields_ < kYields) {
      ++yields_;
      std::this_thread::yield();
      return;
    }
    using std::chrono::microseconds;
    auto const waited = std::chrono::duration_cast<microseconds>(Clock::now() - began_);
    std::this_thread::sleep_for(std::clamp(waited / 64, microseconds(50), microseconds(1000)));
  }

 private:
  static constexpr int kYields = 50;
  Clock::time_point began_ = Clock::now();
  int yields_ = 0;
};

}  // namespace rankslice
