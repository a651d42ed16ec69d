#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "rankslice/error.hpp"
#include "rankslice/options.hpp"

#include "python/native/bindings.hpp"

namespace rankslice::python {

/// A Python object in the hands of C++ code that runs without the GIL. Copies share it.
[[nodiscard]] std::shared_ptr<nb::object> without_gil(nb::object object);

/// The other ranks of a call, for when this one is stopped by something that they do not see.
class OtherRanks {
 public:
  OtherRanks() = default;
  OtherRanks(OtherRanks const&) = delete;
  OtherRanks& operator=(OtherRanks const&) = delete;
  virtual ~OtherRanks() = default;
  /// Stops them at their next block. Needs the GIL.
  virtual void stop() noexcept = 0;
  /// The rank that stopped all, if one did. Needs the GIL.
  [[nodiscard]] virtual std::optional<int> stopped_by() noexcept = 0;
};

/// One long call from Python: runs without the GIL, and comes back to Python with its blocks, at most every 50 ms, for
/// signals and progress. What is raised then ends the call on every rank, and leaves this one as it was raised.
class Call {
 public:
  /// `progress`: called with (phase, bytes done, bytes in all), or None.
  explicit Call(nb::object const& progress);
  Call(Call const&) = delete;
  Call& operator=(Call const&) = delete;
  ~Call();

  /// That of this thread, the innermost one; null where there is none.
  [[nodiscard]] static Call* current();

  /// `threads`: as in `CallOptions`.
  [[nodiscard]] CallOptions options(int threads = 0);

  /// Python code that C++ calls meanwhile, with the GIL. @throws what `keep` gives
  void with_gil(std::function<void()> const& step);

  /// Keeps what Python raised, for `run`, unless it is an error of ours, which becomes the same on all ranks.
  /// What is no Exception, as KeyboardInterrupt and SystemExit, stops the others too. Needs the GIL.
  /// @returns what they are told: `Interrupted` for those, else UnexpectedError
  std::exception_ptr keep(nb::python_error const& error);

  /// Who else is in this call.
  void together_with(std::weak_ptr<OtherRanks> others) { others_ = std::move(others); }
  /// What the process group or a device raised: the cause of a CommError or DeviceError.
  void blame(nb::object error) {
    if (!cause_.is_valid()) cause_ = std::move(error);  // later ones come of the first
  }

  /// Run `work` without the GIL. @throws what Python raised within it, else what it throws
  template <typename Work>
  auto run(Work const& work) {
    std::optional<std::invoke_result_t<Step<Work>>> result;
    try {
      nb::gil_scoped_release const released;
      result.emplace(Step<Work>{work}());
    } catch (Error& error) {
      complete(error);
      throw;
    } catch (...) {
      raise_what_was_kept();
      throw;
    }
    raise_what_was_kept();
    if constexpr (!std::is_void_v<std::invoke_result_t<Work>>) return std::move(*result);
  }

 private:
  /// `Work`, with a result where it has none.
  template <typename Work>
  struct Step {
    Work const& work;
    auto operator()() const {
      if constexpr (std::is_void_v<std::invoke_result_t<Work>>) {
        work();
        return true;
      } else {
        return work();
      }
    }
  };

  void report(Progress const& progress);
  void log(Notice const& notice);
  void raise_what_was_kept() const;
  /// Adds what only this side knows: who stopped all, and what the process group raised.
  void complete(Error& error) const;

  Call* outer_;
  std::shared_ptr<nb::object> progress_;
  std::chrono::steady_clock::time_point next_report_;
  std::weak_ptr<OtherRanks> others_;
  nb::object cause_;
  std::optional<nb::python_error> raised_;
};

}  // namespace rankslice::python
