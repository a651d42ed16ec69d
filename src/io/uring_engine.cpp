#include <fmt/format.h>

#include "rankslice/error.hpp"

#include "io/host_limits.hpp"
#include "io/positional.hpp"
#include "io/read_engine.hpp"

#ifdef RANKSLICE_WITH_URING

#include <liburing.h>

#include <cerrno>

namespace rankslice {

namespace {

[[noreturn]] void fail(std::string_view what, int error) {
  throw IoError(ExitCode::io, fmt::format("io_uring: {}: {}", what, reason(error)));
}

class UringEngine final : public ReadEngine {
 public:
  UringEngine(unsigned depth, std::span<std::byte> memory) : memory_(memory) {
    auto const error = -::io_uring_queue_init(depth, &ring_, 0);
    if (error != 0) fail("cannot be set up", error);
    ::iovec const whole{memory.data(), memory.size()};
    registered_ = !memory.empty() && ::io_uring_register_buffers(&ring_, &whole, 1) == 0;
  }
  ~UringEngine() override {
    while (in_kernel() > 0) {  // what writes to the caller's memory
      ::io_uring_cqe* done = nullptr;
      if (::io_uring_wait_cqe(&ring_, &done) == 0) take(*done);
    }
    ::io_uring_queue_exit(&ring_);
  }
  UringEngine(UringEngine const&) = delete;
  UringEngine& operator=(UringEngine const&) = delete;

  void start(EngineRead const& read) override {
    auto* const entry = ::io_uring_get_sqe(&ring_);  // there is one for each of `depth`
    auto const* const end = memory_.data() + memory_.size();
    if (registered_ && memory_.data() <= read.to && read.to + read.size <= end) {
      ::io_uring_prep_read_fixed(entry, read.fd, read.to, read.size, read.offset, 0);
    } else {
      ::io_uring_prep_read(entry, read.fd, read.to, read.size, read.offset);
    }
    ::io_uring_sqe_set_data64(entry, read.tag);
    ++under_way_;
    hand_over(0);
  }

  EngineCompletion wait() override {
    for (;;) {
      ::io_uring_cqe* done = nullptr;
      if (::io_uring_peek_cqe(&ring_, &done) == 0) return take(*done);
      hand_over(1);
    }
  }

 private:
  [[nodiscard]] std::size_t in_kernel() const { return under_way_ - ::io_uring_sq_ready(&ring_); }

  /// What is not with the kernel yet; and wait until so many have ended. A kernel that has no memory for one more read
  /// takes it later, when another one has ended.
  void hand_over(unsigned ended) {
    auto const error = -::io_uring_submit_and_wait(&ring_, ended);
    if (error <= 0 || error == EINTR) return;
    auto const takes_none_now = error == EAGAIN || error == EBUSY;
    if (!takes_none_now || in_kernel() == 0) fail("takes no reads", error);
  }

  EngineCompletion take(::io_uring_cqe& done) {
    EngineCompletion const completion{.tag = ::io_uring_cqe_get_data64(&done), .got = done.res};
    ::io_uring_cqe_seen(&ring_, &done);
    --under_way_;
    return completion;
  }

  std::span<std::byte> memory_;
  bool registered_ = false;
  std::size_t under_way_ = 0;
  ::io_uring ring_{};
};

}  // namespace

std::unique_ptr<ReadEngine> make_uring_engine(unsigned depth, std::span<std::byte> memory) {
  return std::make_unique<UringEngine>(depth, memory);
}

std::string why_no_uring_engine() { return why_no_io_uring(); }

}  // namespace rankslice

#else

namespace rankslice {

std::unique_ptr<ReadEngine> make_uring_engine(unsigned /*depth*/, std::span<std::byte> /*memory*/) {
  throw IoError(ExitCode::io, why_no_uring_engine());
}

std::string why_no_uring_engine() { return "this build of rankslice was made without liburing"; }

}  // namespace rankslice

#endif
