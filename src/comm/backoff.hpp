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
    auto const length = next();
    length.count() == 0 ? std::this_thread::yield() : std::this_thread::sleep_for(length);
  }

  /// How long the next one is, for those who can be woken earlier; zero for a yield.
  [[nodiscard]] std::chrono::microseconds next() {
    using std::chrono::microseconds;
    if (yields_ < kYields) {
      ++yields_;
      return microseconds(0);
    }
    auto const waited = std::chrono::duration_cast<microseconds>(Clock::now() - began_);
    return std::clamp(waited / 64, microseconds(50), microseconds(1000));
  }

 private:
  static constexpr int kYields = 50;
  Clock::time_point began_ = Clock::now();
  int yields_ = 0;
};

}  // namespace rankslice
