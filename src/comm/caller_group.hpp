#pragma once

#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "rankslice/callbacks.hpp"

namespace rankslice {

/// The caller's functions, and the first error that one of them threw: after it, nothing new is called. Ranks are those
/// of the caller's group. `what` names a call for people.
class CallerGroup : public std::enable_shared_from_this<CallerGroup> {
 public:
  /// @throws UsageError when the functions make no sense together.
  explicit CallerGroup(Collectives functions);

  [[nodiscard]] Collectives const& functions() const { return functions_; }
  [[nodiscard]] bool has_messages() const { return functions_.start_send != nullptr; }
  [[nodiscard]] bool has_collectives() const { return functions_.all_reduce != nullptr; }

  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to, int tag);
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from, int tag);
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root);
  void all_reduce(std::span<std::uint64_t> values, Reduce op);
  [[nodiscard]] Collectives split(std::vector<int> const& colors);

  /// What it throws is no failure of the group.
  void progress();
  /// What it throws here comes out of the next `progress`: a wait that it ends would end this rank alone.
  void progress_in_wait() noexcept;

  void fail(std::exception_ptr error) noexcept;
  void expect_no_error() const;

  int next_tag = 0;  ///< That no communicator of this rank uses yet.

 private:
  class Transfer;
  /// A message whose wait function is still to be called.
  struct Message {
    WaitFunction wait;
    bool done = false;
  };
  using Messages = std::deque<std::shared_ptr<Message>>;

  /// Makes a call of a function, unless one has failed; keeps what it throws.
  void run(std::string const& what, std::function<void()> const& call);
  /// One message for each piece of `bytes`.
  template <typename Byte, typename Start>
  [[nodiscard]] std::unique_ptr<PendingTransfer> start(std::string what, std::span<Byte> bytes,
                                                       Start const& start_piece, Messages* queue);

  Collectives functions_;
  std::exception_ptr error_;
  std::exception_ptr stop_;                           ///< Thrown by `progress` in a wait.
  std::map<std::pair<int, int>, Messages> received_;  ///< In the order of their start, by sender and tag.
};

}  // namespace rankslice
