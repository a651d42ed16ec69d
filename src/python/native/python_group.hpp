#pragma once

#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <span>

#include "rankslice/callbacks.hpp"
#include "rankslice/communicator.hpp"

#include "python/native/bindings.hpp"
#include "python/native/call.hpp"

namespace rankslice::python {

/// A process group of Python's: `_world._Messages` says what it has. Its functions run on a thread of its own, which
/// serves `jobs`: Python runs signal handlers between any two lines of the main thread, and an exception from there
/// must not lose a message. The calling thread waits for it, and looks around meanwhile: what it sees then is thrown at
/// the next block, for a wait that breaks off would end this rank alone.
class PythonGroup final : public OtherRanks, public std::enable_shared_from_this<PythonGroup> {
 public:
  explicit PythonGroup(nb::object const& group);
  ~PythonGroup() override;

  /// What `make_communicator` takes. Holds this group.
  [[nodiscard]] Collectives functions();

  /// Gives all ranks the name under which the first one lets them stop one another. Until then no rank is stopped;
  /// what stops this one is made up for. Collective over `world`, which is made of this group.
  void name_flag(Communicator& world);

  void stop() noexcept override;
  [[nodiscard]] std::optional<int> stopped_by() noexcept override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Job;

  template <typename Byte>
  [[nodiscard]] WaitFunction start(char const* function, std::span<Byte> bytes, int peer, int tag);
  /// `function(*arguments)` on the group's thread. @throws std::runtime_error with the text of what it raises
  nb::object run(nb::object const& function, nb::tuple const& arguments);
  void wait_for(Job& job);
  [[noreturn]] static void fail(nb::object const& error);

  /// Signals of this process, and interrupts on other ranks. Needs the GIL.
  void look_around();
  void look_for_signals();
  /// Called with every block.
  void progress();

  std::shared_ptr<nb::object> group_;
  Clock::duration between_looks_;
  Clock::time_point next_look_;
  std::exception_ptr stop_;                 ///< For the next block.
  std::optional<Clock::time_point> since_;  ///< The first interrupt of this rank.
};

}  // namespace rankslice::python
