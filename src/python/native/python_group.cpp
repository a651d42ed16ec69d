#include "python/native/python_group.hpp"

#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "rankslice/error.hpp"

namespace rankslice::python {

namespace {

constexpr std::chrono::milliseconds kBetweenSignals{50};
/// An interrupt so soon after another is the same one: terminals and launchers both send it.
constexpr std::chrono::seconds kSameInterrupt{1};

/// Bytes that torch takes as a uint8 tensor over the same memory. It would warn about memory that must not be written.
nb::object view_of(std::byte const* data, std::size_t bytes) {
  auto* const memory = const_cast<char*>(reinterpret_cast<char const*>(data));
  return nb::steal(PyMemoryView_FromMemory(memory, static_cast<Py_ssize_t>(bytes), PyBUF_WRITE));
}

/// An interrupt counts where signals are looked for, not within what is not to be interrupted.
void put_off(nb::python_error const& error) {
  if (error.matches(PyExc_KeyboardInterrupt)) PyErr_SetInterrupt();
}

/// Where no call can raise it: between the next two lines of the main thread.
void raise_later(nb::python_error const& error) {
  auto kept = std::make_unique<nb::python_error>(error);
  auto const raise = [](void* given) {
    std::unique_ptr<nb::python_error> const owned(static_cast<nb::python_error*>(given));
    owned->restore();
    return -1;
  };
  if (Py_AddPendingCall(raise, kept.get()) == 0) (void)kept.release();
}

}  // namespace

/// What the group's thread is to do, and what came of it.
struct PythonGroup::Job {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  nb::object result;
  nb::object error;
};

PythonGroup::PythonGroup(nb::object const& group)
    : group_(without_gil(group)),
      between_looks_(std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(nb::cast<double>(group.attr("between_looks"))))),
      next_look_(Clock::now()) {}

PythonGroup::~PythonGroup() = default;

Collectives PythonGroup::functions() {
  nb::gil_scoped_acquire const gil;
  Collectives functions;
  functions.rank = nb::cast<int>(group_->attr("rank"));
  functions.size = nb::cast<int>(group_->attr("size"));
  functions.kind = nb::cast<std::string>(group_->attr("kind"));
  functions.largest_message = nb::cast<std::size_t>(group_->attr("largest_message"));
  auto const self = shared_from_this();
  functions.start_send = [self](std::span<std::byte const> bytes, int to, int tag) {
    return self->start("start_send", bytes, to, tag);
  };
  functions.start_receive = [self](std::span<std::byte> bytes, int from, int tag) {
    return self->start("start_receive", bytes, from, tag);
  };
  functions.progress = [self] { self->progress(); };
  return functions;
}

void PythonGroup::name_flag(Communicator& world) {
  std::array<std::uint32_t, 4> name{};
  std::random_device random;
  std::ranges::generate(name, [&] { return random(); });
  world.broadcast(std::as_writable_bytes(std::span(name)), 0);
  nb::gil_scoped_acquire const gil;
  group_->attr("name_flag")(nb::bytes(name.data(), sizeof(name)));
}

template <typename Byte>
WaitFunction PythonGroup::start(char const* function, std::span<Byte> bytes, int peer, int tag) {
  nb::gil_scoped_acquire const gil;
  auto const arguments = nb::make_tuple(view_of(bytes.data(), bytes.size()), peer, tag);
  return [self = shared_from_this(), wait = without_gil(run(group_->attr(function), arguments))] {
    nb::gil_scoped_acquire const waiting;
    self->run(*wait, nb::make_tuple());
  };
}

nb::object PythonGroup::run(nb::object const& function, nb::tuple const& arguments) {
  if (auto* const call = Call::current()) call->together_with(weak_from_this());
  auto const job = std::make_shared<Job>();
  nb::object const done = nb::cpp_function(
      [job](nb::object result, nb::object error) {
        {
          std::scoped_lock const lock(job->mutex);
          job->result = std::move(result);
          job->error = std::move(error);
          job->done = true;
        }
        job->changed.notify_one();
      },
      nb::arg("result").none(), nb::arg("error").none());
  group_->attr("jobs").attr("put")(nb::make_tuple(function, arguments, done));
  wait_for(*job);
  if (!job->error.is_none()) fail(job->error);
  return std::move(job->result);
}

void PythonGroup::wait_for(Job& job) {
  nb::gil_scoped_release const released;
  std::unique_lock lock(job.mutex);
  while (!job.changed.wait_for(lock, kBetweenSignals, [&] { return job.done; })) {
    lock.unlock();
    {
      nb::gil_scoped_acquire const gil;
      look_around();
    }
    lock.lock();
  }
}

void PythonGroup::fail(nb::object const& error) {
  if (auto* const call = Call::current()) call->blame(error);
  throw std::runtime_error(nb::cast<std::string>(nb::str(error)));
}

void PythonGroup::look_around() {
  look_for_signals();
  auto const now = Clock::now();
  if (now < next_look_ || Call::current() == nullptr) return;
  next_look_ = now + between_looks_;
  if (!stop_ && stopped_by()) stop_ = std::make_exception_ptr(Interrupted());
}

void PythonGroup::look_for_signals() {
  if (PyErr_CheckSignals() == 0) return;
  nb::python_error const error;
  auto const now = Clock::now();
  if (error.matches(PyExc_KeyboardInterrupt)) {
    if (since_ && now - *since_ > kSameInterrupt) {
      (void)std::signal(SIGINT, SIG_DFL);
      (void)std::raise(SIGINT);
    }
    if (!since_) since_ = now;
  }
  if (auto* const call = Call::current()) {
    stop_ = call->keep(error);
  } else {
    raise_later(error);
  }
}

void PythonGroup::progress() {
  if (!stop_ && Clock::now() >= next_look_) {
    nb::gil_scoped_acquire const gil;
    if (auto* const call = Call::current()) call->together_with(weak_from_this());
    look_around();
  }
  if (stop_) std::rethrow_exception(stop_);
}

void PythonGroup::stop() noexcept {
  try {
    group_->attr("stop")();
  } catch (nb::python_error const& error) {
    put_off(error);
  }
}

std::optional<int> PythonGroup::stopped_by() noexcept {
  try {
    return nb::cast<std::optional<int>>(group_->attr("stopped_by")());
  } catch (nb::python_error const& error) {
    put_off(error);
    return {};
  }
}

}  // namespace rankslice::python
