#include "python/native/call.hpp"

#include <nanobind/stl/string.h>

#include "python/native/errors.hpp"

namespace rankslice::python {

namespace {

constexpr std::chrono::milliseconds kBetweenReports{50};

thread_local Call* current_call = nullptr;

}  // namespace

std::shared_ptr<nb::object> without_gil(nb::object object) {
  return {new nb::object(std::move(object)), [](nb::object* held) {
            if (!Py_IsInitialized()) return;  // at exit Python is gone before the last of our threads
            nb::gil_scoped_acquire const gil;
            delete held;
          }};
}

Call::Call(nb::object const& progress)
    : outer_(std::exchange(current_call, this)),
      progress_(progress.is_none() ? nullptr : without_gil(progress)),
      next_report_(std::chrono::steady_clock::now()) {}

Call::~Call() { current_call = outer_; }

Call* Call::current() { return current_call; }

CallOptions Call::options(int threads) {
  return {.threads = threads,
          .progress = [this](Progress const& progress) { report(progress); },
          .stop = {},
          .notice = [this](Notice const& notice) { log(notice); }};
}

void Call::log(Notice const& notice) {
  with_gil([&] {
    auto const logger = nb::module_::import_("logging").attr("getLogger")("rankslice");
    logger.attr(notice.warning ? "warning" : "info")(notice.text);
  });
}

void Call::report(Progress const& progress) {
  auto const now = std::chrono::steady_clock::now();
  if (now < next_report_ && progress.done < progress.total) return;
  next_report_ = now + kBetweenReports;
  with_gil([&] {
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (progress_) {
      (*progress_)(nb::str(progress.phase.data(), progress.phase.size()), progress.done, progress.total);
    }
  });
}

void Call::with_gil(std::function<void()> const& step) {
  nb::gil_scoped_acquire const gil;
  try {
    step();
  } catch (nb::python_error const& error) {
    std::rethrow_exception(keep(error));
  }
}

std::exception_ptr Call::keep(nb::python_error const& error) {
  if (auto const ours = error_of(error)) return ours;
  if (!raised_) raised_.emplace(error);
  if (error.matches(PyExc_Exception)) return std::make_exception_ptr(UnexpectedError(described(error)));
  if (auto const others = others_.lock()) others->stop();
  return std::make_exception_ptr(Interrupted());
}

void Call::raise_what_was_kept() const {
  if (raised_) throw nb::python_error(*raised_);
}

void Call::complete(Error& error) const {
  raise_what_was_kept();
  auto const others = others_.lock();
  if (others != nullptr && dynamic_cast<Interrupted const*>(&error) != nullptr) {
    error.rank = others->stopped_by().value_or(error.rank);
  }
  auto const is_blamed =
      dynamic_cast<CommError const*>(&error) != nullptr || dynamic_cast<DeviceError const*>(&error) != nullptr;
  if (cause_.is_valid() && is_blamed) raise(error, cause_);
}

}  // namespace rankslice::python
