#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "rankslice/error.hpp"

#include "io/host_limits.hpp"
#include "io/positional.hpp"
#include "io/read_engine.hpp"

#ifdef RANKSLICE_WITH_URING

#include <liburing.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <thread>

namespace rankslice {

namespace {

[[noreturn]] void fail(std::string_view what, int error) {
  throw IoError(ExitCode::io, fmt::format("io_uring: {}: {}", what, reason(error)));
}

constexpr auto kTries = 1000;  // a millisecond apart

class UringEngine final : public ReadEngine {
 public:
  UringEngine(unsigned depth, std::span<std::byte> memory) : memory_(memory) {
    auto const error = -::io_uring_queue_init(depth, &ring_, 0);
    if (error != 0) fail("cannot be set up", error);
    ::io_uring_ring_dontfork(&ring_);  // a child of this process would take our completions
    ::iovec const whole{memory.data(), memory.size()};
    registered_ = !memory.empty() && ::io_uring_register_buffers(&ring_, &whole, 1) == 0;
  }
  ~UringEngine() override {
    if (::getpid() != owner_) return;  // a child, which has no part in it
    while (in_kernel() > 0) {          // what writes to the caller's memory
      ::io_uring_cqe* done = nullptr;
      auto const error = -::io_uring_wait_cqe(&ring_, &done);
      if (error == 0) take(*done);
      if (error > 0 && error != EINTR) look_later();
    }
    ::io_uring_queue_exit(&ring_);
  }
  UringEngine(UringEngine const&) = delete;
  UringEngine& operator=(UringEngine const&) = delete;

  void start(EngineRead const& read) override {
    auto* const entry = ::io_uring_get_sqe(&ring_);  // there is one for each of `depth`, taken by the kernel or not
    auto const* const end = memory_.data() + memory_.size();
    if (registered_ && memory_.data() <= read.to && read.to + read.size <= end) {
      ::io_uring_prep_read_fixed(entry, read.fd, read.to, read.size, read.offset, 0);
    } else {
      ::io_uring_prep_read(entry, read.fd, read.to, read.size, read.offset);
    }
    ::io_uring_sqe_set_data64(entry, read.tag);
    ++under_way_;
    ::io_uring_submit(&ring_);  // what it does not take now, `wait` hands over
  }

  EngineCompletion wait() override {
    for (;;) {
      ::io_uring_cqe* done = nullptr;
      if (::io_uring_peek_cqe(&ring_, &done) == 0) return take(*done);
      hand_over();
    }
  }

 private:
  [[nodiscard]] std::size_t in_kernel() const { return under_way_ - ::io_uring_sq_ready(&ring_); }

  /// What is not with the kernel yet; and wait until one has ended. A kernel that has no memory for one more read takes
  /// it later: when another one has ended, or a while after.
  void hand_over() {
    for (auto tries = kTries;; look_later()) {
      auto error = -::io_uring_submit_and_wait(&ring_, 1);
      auto const takes_none_now = error == EAGAIN || error == EBUSY;
      if (takes_none_now && in_kernel() > 0) {
        ::io_uring_cqe* done = nullptr;
        error = -::io_uring_wait_cqe(&ring_, &done);
      }
      if (error <= 0 || error == EINTR) return;
      if (!takes_none_now || --tries == 0) fail("takes no reads", error);
    }
  }

  /// Where the kernel lets nobody wait, or has no memory for the only read.
  static void look_later() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

  EngineCompletion take(::io_uring_cqe& done) {
    EngineCompletion const completion{.tag = ::io_uring_cqe_get_data64(&done), .got = done.res};
    ::io_uring_cqe_seen(&ring_, &done);
    --under_way_;
    return completion;
  }

  ::pid_t owner_ = ::getpid();
  std::span<std::byte> memory_;
  bool registered_ = false;
  std::size_t under_way_ = 0;
  ::io_uring ring_{};
};

}  // namespace

std::unique_ptr<ReadEngine> make_uring_engine(unsigned depth, std::span<std::byte> memory) {
  return std::make_unique<UringEngine>(depth, memory);
}

/// That a ring can be set up is no promise: a filter of system calls may know only that, and the first kernels that
/// have rings have no reads.
std::string why_no_uring_engine() {
  if (auto why = why_no_io_uring(); !why.empty()) return why;
  try {
    UniqueFd const one(::eventfd(1, EFD_CLOEXEC));
    std::uint64_t value = 0;
    UringEngine engine(1, {});
    engine.start({.fd = one.get(), .to = reinterpret_cast<std::byte*>(&value), .size = sizeof(value)});
    auto const got = engine.wait().got;
    if (got == sizeof(value)) return {};
    return "it makes no reads: " + reason(static_cast<int>(-got));
  } catch (IoError const& error) {
    return error.what();
  }
}

}  // namespace rankslice

#else

namespace rankslice {

std::unique_ptr<ReadEngine> make_uring_engine(unsigned /*depth*/, std::span<std::byte> /*memory*/) {
  throw IoError(ExitCode::io, why_no_uring_engine());
}

std::string why_no_uring_engine() { return "this build of rankslice was made without liburing"; }

}  // namespace rankslice

#endif
