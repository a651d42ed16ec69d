#include "core/each_in_threads.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "core/threads.hpp"

namespace rankslice {

namespace {

/// Hands out numbers, and keeps the error of the lowest that failed.
class Numbers {
 public:
  explicit Numbers(std::size_t count) : end_(count) {}

  void work(std::function<void(std::size_t)> const& step) {
    for (auto i = next_++; i < end_; i = next_++) {
      try {
        step(i);
      } catch (...) {
        keep(i);
      }
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void keep(std::size_t i) {
    std::lock_guard const lock(mutex_);
    if (i >= end_) return;
    end_ = i;  // all lower ones are under way, or done
    error_ = std::current_exception();
  }

  std::atomic<std::size_t> next_ = 0;
  std::atomic<std::size_t> end_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void each_in_threads(std::size_t count, std::size_t threads, std::function<void(std::size_t)> const& step) {
  Numbers numbers(count);
  auto const used = std::max<std::size_t>(std::min(threads, count), 1);
  in_threads(static_cast<int>(used), {}, [&](int, BlockDone const&) { numbers.work(step); });
  numbers.rethrow();
}

}  // namespace rankslice
