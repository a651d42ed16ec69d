#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "rankslice/options.hpp"

#include "python/native/bindings.hpp"

namespace rankslice::python {

/// A Python object in the hands of C++ code that runs without the GIL. Copies share it.
[[nodiscard]] std::shared_ptr<nb::object> without_gil(nb::object object);

/// One long call from Python: runs without the GIL, and comes back to Python with its blocks, at most every 50 ms, for
/// signals and progress. What is raised then ends the call on every rank, and leaves this one as it was raised.
class Call {
 public:
  /// `progress`: called with (phase, bytes done, bytes in all), or None.
  explicit Call(nb::object const& progress);

  [[nodiscard]] CallOptions options();

  /// Python code that C++ calls meanwhile, with the GIL. Interrupts become `Interrupted`, all else UnexpectedError, for
  /// the other ranks.
  void with_gil(std::function<void()> const& step);

  /// Run `work` without the GIL. @throws what it throws, or what Python raised within it
  template <typename Work>
  auto run(Work const& work) {
    try {
      nb::gil_scoped_release const released;
      return work();
    } catch (...) {
      if (raised_) throw nb::python_error(*raised_);
      throw;
    }
  }

 private:
  void report(Progress const& progress);

  std::shared_ptr<nb::object> progress_;
  std::chrono::steady_clock::time_point next_report_;
  std::optional<nb::python_error> raised_;
};

}  // namespace rankslice::python
