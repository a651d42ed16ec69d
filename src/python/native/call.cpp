#include "python/native/call.hpp"

#include "rankslice/error.hpp"

namespace rankslice::python {

namespace {

constexpr std::chrono::milliseconds kBetweenReports{50};

}  // namespace

std::shared_ptr<nb::object> without_gil(nb::object object) {
  return {new nb::object(std::move(object)), [](nb::object* held) {
            if (!Py_IsInitialized()) return;  // at exit Python is gone before the last of our threads
            nb::gil_scoped_acquire const gil;
            delete held;
          }};
}

Call::Call(nb::object const& progress)
    : progress_(progress.is_none() ? nullptr : without_gil(progress)), next_report_(std::chrono::steady_clock::now()) {}

CallOptions Call::options() {
  return {.progress = [this](Progress const& progress) { report(progress); }, .stop = {}};
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
    if (!raised_) raised_.emplace(error);
    if (error.matches(PyExc_KeyboardInterrupt)) throw Interrupted();
    throw UnexpectedError(error.what());
  }
}

}  // namespace rankslice::python
