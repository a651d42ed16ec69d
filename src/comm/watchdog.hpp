#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>

namespace rankslice {

/// Ends the process with `ExitCode::timeout` when it is armed and nobody touched it for `patience`. It is there for a
/// rank stuck in a call that cannot time out (a dead NFS server), which therefore cannot give up by itself.
class Watchdog {
 public:
  /// `who` starts the message, "WHO: no progress …", which is made now.
  Watchdog(std::chrono::milliseconds patience, std::string const& who);

  void arm() noexcept;
  [[nodiscard]] bool armed() const noexcept { return armed_.load(std::memory_order_relaxed); }
  void disarm() noexcept { armed_.store(false, std::memory_order_relaxed); }
  /// Cheap enough for every block and every poll.
  void touch() noexcept { touches_.fetch_add(1, std::memory_order_relaxed); }

 private:
  void watch(std::stop_token const& stop);
  [[noreturn]] void bite() const noexcept;

  std::chrono::milliseconds patience_;
  std::string message_;
  std::atomic<bool> armed_ = false;
  std::atomic<std::uint64_t> touches_ = 0;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace rankslice
