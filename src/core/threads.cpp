#include "core/threads.hpp"

#include <fmt/format.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <exception>
#include <latch>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

constexpr std::chrono::milliseconds kBetweenLooks{5};  // of the caller, who waits, at what the others have done

/// Ends a thread because of another one's error.
struct Stopped {};

/// While it lives, threads are born deaf to signals: handlers run on the threads of the program that set them.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    // Faults are of the thread that makes them: their handlers print where. And profilers look at all threads.
    for (auto const own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF}) sigdelset(&all, own);
    ::pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(SignalsBlocked const&) = delete;
  SignalsBlocked& operator=(SignalsBlocked const&) = delete;

 private:
  sigset_t before_{};
};

class ThreadGroup {
 public:
  ThreadGroup(int threads, BlockDone const& done, ThreadStep const& step)
      : done_(done), step_(step), errors_(static_cast<std::size_t>(threads)) {}

  void run() {
    {
      std::vector<std::jthread> others;  // joined whatever happens
      start(others);
      auto const tell_it = [this](std::uint64_t bytes) { tell(bytes); };
      run_step(0, tell_it);
      auto const threads = static_cast<int>(errors_.size());
      for (auto thread = first_missing_; thread < threads && !stopping_; ++thread) run_step(thread, tell_it);
      wait_for_others();
    }
    for (auto const& error : errors_) {
      if (error) std::rethrow_exception(error);
    }
    if (done_ && untold_ > 0) done_(untold_);
  }

 private:
  void start(std::vector<std::jthread>& others) {
    SignalsBlocked const blocked;
    auto const threads = static_cast<int>(errors_.size());
    others.reserve(errors_.size() - 1);
    for (int thread = 1; thread < threads; ++thread) {
      try {
        others.emplace_back([this, thread] { run_other(thread); });
      } catch (std::system_error const&) {
        return;
      } catch (std::bad_alloc const&) {
        return;
      }
      first_missing_ = thread + 1;
      std::lock_guard const lock(mutex_);
      ++running_;
    }
  }

  void run_other(int thread) {
    run_step(thread, [this](std::uint64_t bytes) {
      untold_ += bytes;
      if (stopping_) throw Stopped();
    });
    std::lock_guard const lock(mutex_);
    --running_;
    ended_.notify_one();
  }

  void run_step(int thread, BlockDone const& done) {
    keep_error(thread, [&] { step_(thread, done); });
  }

  template <typename Step>
  void keep_error(int thread, Step const& step) {
    try {
      step();
    } catch (Stopped const&) {  // by an error that is kept
    } catch (...) {
      errors_[static_cast<std::size_t>(thread)] = std::current_exception();
      stopping_ = true;
    }
  }

  /// On the caller's thread.
  void tell(std::uint64_t bytes) {
    if (stopping_) throw Stopped();
    bytes += untold_.exchange(0);
    if (done_) done_(bytes);
  }

  /// Who waits tells nothing where nothing was done: other ranks would take that for getting on.
  void wait_for_others() {
    std::unique_lock lock(mutex_);
    while (!ended_.wait_for(lock, kBetweenLooks, [this] { return running_ == 0; })) {
      if (stopping_ || untold_ == 0) continue;
      lock.unlock();
      keep_error(0, [this] { tell(0); });
      lock.lock();
    }
  }

  BlockDone const& done_;
  ThreadStep const& step_;
  std::vector<std::exception_ptr> errors_;  // by thread
  std::atomic<bool> stopping_ = false;
  std::atomic<std::uint64_t> untold_ = 0;  // bytes that the others have done
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;        // of the others
  int first_missing_ = 1;  // thread that the system did not give: the caller does its step and those after it
};

}  // namespace

void in_threads(int threads, BlockDone const& done, ThreadStep const& step) {
  if (threads <= 1) return step(0, done);
  ThreadGroup(threads, done, step).run();
}

void require_threads(int threads) {
  std::latch all_tried(1);
  std::vector<std::jthread> others;
  auto const refuse = [&](std::string const& why) {
    auto const given = others.size() + 1;
    all_tried.count_down();
    throw UsageError(
        fmt::format("{} threads were asked for, and the system gives {}: {}; what limits them is the number "
                    "of processes of the user (ulimit -u) or of the cgroup (pids.max), or memory",
                    threads, given, why));
  };
  try {
    others.reserve(static_cast<std::size_t>(threads));
    while (static_cast<int>(others.size()) + 1 < threads) others.emplace_back([&] { all_tried.wait(); });
  } catch (std::system_error const& error) {
    refuse(error.code().message());
  } catch (std::bad_alloc const&) {
    refuse("out of memory");
  }
  all_tried.count_down();
}

}  // namespace rankslice
