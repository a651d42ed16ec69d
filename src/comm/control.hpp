#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "rankslice/communicator.hpp"

#include "comm/control_channel.hpp"
#include "comm/control_message.hpp"
#include "comm/silent_ranks.hpp"
#include "comm/watchdog.hpp"

namespace rankslice {

class Control;

/// Of one rank: its part in a communicator and in those that were split from that. One thread uses them all.
using ControlFamily = std::vector<Control*>;

/// Waits, deadlines and agreements of the ranks that one channel joins.
///
/// Note [Signs of life]. All control messages go between rank 0 and another rank, and arrive in the order in which
/// they were sent:
///   - a rank that works tells rank 0 so (`working`), as does one that waits in a collective call (`waiting`);
///   - rank 0 tells those who wait that it keeps watch (`watching`), whether it works or waits itself;
///   - an agreement is a `check_in` from every rank and a `verdict` to every rank. No collective call is part of it: a
///     dead rank cannot wedge the others, and rank 0 knows whose word is missing.
/// Signs go out at most every tenth of the deadline (or second), and at most one per receiver is under way.
/// Rank 0 gives up when a rank that it waits for has not been heard working for the deadline, or waiting, as long as
/// any rank works. The others give up a little later than that after rank 0's last sign, so that rank 0, which knows
/// the names, speaks first. Who has left without its word (where the channel knows) is given up at once. Because of the
/// order, once a verdict has come no control message of the past is under way between the two; so an agreement before
/// the channel ends leaves nothing unmatched in it.
/// A rank that works or waits says so in all communicators of its family: who waits for it in one of them must not take
/// it for dead while it is busy in another. Only the one that it waits in judges.
class Control {
 public:
  using Clock = std::chrono::steady_clock;

  /// `channel` and `family` are borrowed; `names` has one entry per rank. `watchdog` ends a rank stuck in a step,
  /// unless it is null.
  Control(ControlChannel& channel, ControlFamily& family, std::vector<RankName> names,
          std::chrono::milliseconds timeout, std::unique_ptr<Watchdog> watchdog,
          std::function<Clock::time_point()> now = Clock::now);
  ~Control();
  Control(Control const&) = delete;
  Control& operator=(Control const&) = delete;

  /// The watchdog watches this rank from here to `end_step` or the end of the next agreement.
  void begin_step();
  void end_step();
  /// Cheap: looks at a clock, and talks only when a sign is due.
  void progress();
  /// Polls `done`. Aborts at the deadline.
  void wait_until(std::function<bool()> const& done);
  /// Takes in what has arrived.
  void listen();
  /// Collective.
  [[nodiscard]] Outcome agree(Outcome const& mine);
  /// Collective: agrees one last time. Afterwards no message is under way.
  void finish();

  [[nodiscard]] int rank() const { return channel_.rank(); }
  [[nodiscard]] int size() const { return static_cast<int>(peers_.size()); }
  [[nodiscard]] RankName const& name() const { return name_of(rank()); }
  [[nodiscard]] RankName const& name_of(int rank) const { return names_[static_cast<std::size_t>(rank)]; }

 private:
  /// What rank 0 knows of a rank; the others keep only `heard`, of rank 0.
  struct Peer {
    Clock::time_point worked;  ///< When it was last heard working.
    Clock::time_point heard;   ///< When anything was last heard from it.
    bool waits = false;
    std::optional<Outcome> check_in;
  };

  [[nodiscard]] Outcome collect(Outcome const& mine);
  [[nodiscard]] Outcome ask(Outcome const& mine);
  [[nodiscard]] Outcome lowest_failure() const;
  void send_verdict(Outcome const& verdict);

  /// Polls until `done`, listening and giving signs; `judge` gives up when the deadline has passed.
  void wait_until(std::function<bool()> const& done, std::optional<ControlKind> sign,
                  std::function<void(Clock::time_point)> const& judge);
  void note(int source, ControlMessage const& message);
  /// What this rank does, wherever it does it.
  void say(ControlKind what, Clock::time_point now);
  void give_sign(Clock::time_point now, std::optional<ControlKind> mine);
  void send_sign(int to, ControlKind kind);

  /// Gives up on those who can never answer.
  void judge_left(std::function<bool(int)> const& is_awaited) const;
  void judge_check_ins(Clock::time_point now) const;
  void judge_collective(Clock::time_point now) const;
  void judge_rank_0(Clock::time_point now) const;
  void give_up(std::span<RankName const> silent) const;
  void give_up_on_each_other() const;
  [[nodiscard]] Clock::time_point last_progress() const;
  void expect_agreement(std::uint64_t agreement) const;

  ControlChannel& channel_;
  ControlFamily& family_;
  std::vector<RankName> names_;
  std::chrono::milliseconds timeout_;
  std::chrono::milliseconds interval_;
  std::unique_ptr<Watchdog> watchdog_;
  std::function<Clock::time_point()> now_;
  std::vector<Peer> peers_;
  std::size_t check_ins_ = 0;
  std::optional<Outcome> verdict_;
  std::uint64_t agreement_ = 0;
  Clock::time_point wait_began_;
  Clock::time_point sign_due_;
};

}  // namespace rankslice
