#include "comm/control.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "comm/backoff.hpp"

namespace rankslice {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLongestInterval{1000};
constexpr milliseconds kGrace{1000};  // how much later than rank 0 the others give up
constexpr milliseconds kTurn{3000};   // between them, so that one speaks and the launcher has time to end the others
constexpr int kTurns = 5;             // after which all give up at once

/// Armed as long as this rank waits, and after that as long as it is in a step.
class Watched {
 public:
  explicit Watched(Watchdog* dog) : dog_(dog), in_step_(dog != nullptr && dog->armed()) {
    if (dog_ != nullptr) dog_->arm();
  }
  ~Watched() {
    if (dog_ != nullptr && !in_step_) dog_->disarm();
  }
  Watched(Watched const&) = delete;
  Watched& operator=(Watched const&) = delete;

 private:
  Watchdog* dog_;
  bool in_step_;
};

}  // namespace

Control::Control(ControlChannel& channel, ControlFamily& family, std::vector<RankName> names, milliseconds timeout,
                 std::unique_ptr<Watchdog> watchdog, std::function<Clock::time_point()> now)
    : channel_(channel),
      family_(family),
      names_(std::move(names)),
      timeout_(timeout),
      interval_(std::min(timeout / 10, kLongestInterval)),
      watchdog_(std::move(watchdog)),
      now_(std::move(now)),
      peers_(names_.size()) {
  family_.push_back(this);
}

Control::~Control() { std::erase(family_, this); }

void Control::begin_step() {
  if (watchdog_) watchdog_->arm();
}

void Control::end_step() {
  if (watchdog_) watchdog_->disarm();
}

void Control::progress() {
  auto const now = now_();
  for (auto* const each : family_) each->say(ControlKind::working, now);
}

void Control::say(ControlKind what, Clock::time_point now) {
  if (watchdog_) watchdog_->touch();
  if (now < sign_due_) return;
  if (rank() == 0) listen();
  give_sign(now, what);
}

void Control::wait_until(std::function<bool()> const& done) {
  Watched const watched(watchdog_.get());
  wait_until(done, ControlKind::waiting, [this](auto now) { rank() == 0 ? judge_collective(now) : judge_rank_0(now); });
}

Outcome Control::agree(Outcome const& mine) {
  end_step();
  Watched const watched(watchdog_.get());
  auto stated = mine;
  stated.rank = rank();
  return rank() == 0 ? collect(stated) : ask(stated);
}

void Control::finish() {
  std::ignore = agree({});
  wait_until([this] {
    for (int to = 0; to < size(); ++to) {
      if (channel_.sending(to)) return false;
    }
    return true;
  });
}

Outcome Control::collect(Outcome const& mine) {
  note(0, {.kind = ControlKind::check_in, .agreement = agreement_, .outcome = mine});
  wait_until([this] { return check_ins_ == peers_.size(); }, std::nullopt, [this](auto now) { judge_check_ins(now); });
  auto const verdict = lowest_failure();
  // Before the verdict is out: a quick rank's next check-in may come while a slow one still receives it.
  for (auto& peer : peers_) {
    peer.check_in.reset();
    peer.waits = false;
  }
  check_ins_ = 0;
  send_verdict(verdict);
  return verdict;
}

Outcome Control::lowest_failure() const {
  auto const failed = std::find_if(peers_.begin(), peers_.end(),
                                   [](Peer const& peer) { return peer.check_in->code != ExitCode::done; });
  return failed == peers_.end() ? Outcome{} : *failed->check_in;
}

void Control::send_verdict(Outcome const& verdict) {
  auto const bytes = encode({.kind = ControlKind::verdict, .agreement = agreement_++, .outcome = verdict});
  for (int to = 1; to < size(); ++to) channel_.send(to, bytes);
  std::vector<RankName> unreached;
  auto const sent = [&] {
    unreached.clear();
    for (int to = 1; to < size(); ++to) {
      if (channel_.sending(to)) unreached.push_back(name_of(to));
    }
    return unreached.empty();
  };
  wait_until(sent, std::nullopt, [&](auto now) {
    if (now >= wait_began_ + timeout_) give_up(unreached);
  });
}

Outcome Control::ask(Outcome const& mine) {
  channel_.send(0, encode({.kind = ControlKind::check_in, .agreement = agreement_, .outcome = mine}));
  wait_until([this] { return verdict_.has_value() && !channel_.sending(0); }, std::nullopt,
             [this](auto now) {
               judge_left([](int rank) { return rank == 0; });
               judge_rank_0(now);
             });
  ++agreement_;
  return *std::exchange(verdict_, std::nullopt);
}

void Control::wait_until(std::function<bool()> const& done, std::optional<ControlKind> sign,
                         std::function<void(Clock::time_point)> const& judge) {
  wait_began_ = now_();
  Backoff backoff;
  while (true) {
    if (watchdog_) watchdog_->touch();
    listen();
    if (done()) return;
    auto const now = now_();
    give_sign(now, sign);
    for (auto* const each : family_) {
      if (each != this) each->say(ControlKind::waiting, now);
    }
    judge(now);
    channel_.pause(backoff);
  }
}

void Control::listen() {
  while (auto const arrival = channel_.receive()) note(arrival->from, decode(arrival->bytes));
}

void Control::note(int source, ControlMessage const& message) {
  auto& peer = peers_[static_cast<std::size_t>(source)];
  peer.heard = now_();
  switch (message.kind) {
    case ControlKind::working:
      peer.worked = peer.heard;
      peer.waits = false;
      return;
    case ControlKind::waiting:
      peer.waits = true;
      return;
    case ControlKind::watching:
      return;
    case ControlKind::check_in:
      expect_agreement(message.agreement);
      peer.waits = source != rank();
      peer.check_in = message.outcome;
      ++check_ins_;
      return;
    case ControlKind::verdict:
      expect_agreement(message.agreement);
      verdict_ = message.outcome;
      return;
  }
}

void Control::give_sign(Clock::time_point now, std::optional<ControlKind> mine) {
  if (now < sign_due_) return;
  sign_due_ = now + interval_;
  if (rank() != 0) {
    if (mine) send_sign(0, *mine);
    return;
  }
  for (int to = 1; to < size(); ++to) {
    if (peers_[static_cast<std::size_t>(to)].waits) send_sign(to, ControlKind::watching);
  }
}

void Control::send_sign(int to, ControlKind kind) {
  if (!channel_.sending(to) && !channel_.has_left(to))
    channel_.send(to, encode({.kind = kind, .agreement = 0, .outcome = {}}));
}

void Control::judge_left(std::function<bool(int)> const& is_awaited) const {
  for (int each = 0; each < size(); ++each) {
    if (!is_awaited(each) || !channel_.has_left(each)) continue;
    return channel_.abort(ExitCode::timeout, describe_leaver(name_of(each)));
  }
}

void Control::judge_check_ins(Clock::time_point now) const {
  auto const missing = [](Peer const& peer) { return !peer.check_in.has_value(); };
  judge_left([&](int rank) { return missing(peers_[static_cast<std::size_t>(rank)]); });
  // One that waits for another, inside its step, need only be alive.
  auto const silence = [&](Peer const& peer) {
    return now - std::max(wait_began_, peer.waits ? peer.heard : peer.worked);
  };
  if (std::any_of(peers_.begin(), peers_.end(),
                  [&](Peer const& peer) { return missing(peer) && silence(peer) >= timeout_; })) {
    // Ranks that died together gave their last signs up to an interval apart: name them together too.
    std::vector<RankName> silent;
    for (std::size_t r = 0; r < peers_.size(); ++r) {
      if (missing(peers_[r]) && silence(peers_[r]) >= timeout_ - 2 * interval_) silent.push_back(names_[r]);
    }
    return give_up(silent);
  }
  auto const all_wait =
      std::all_of(peers_.begin(), peers_.end(), [&](Peer const& peer) { return !missing(peer) || peer.waits; });
  if (all_wait && now - last_progress() >= timeout_) give_up_on_each_other();
}

Control::Clock::time_point Control::last_progress() const {
  auto last = wait_began_;
  for (auto const& peer : peers_) last = std::max(last, peer.worked);
  return last;
}

void Control::judge_collective(Clock::time_point now) const {
  if (now - last_progress() < timeout_) return;
  std::vector<RankName> silent;
  for (std::size_t r = 1; r < peers_.size(); ++r) {
    // One that has checked in already gives no signs until the verdict.
    auto const owes_signs = !peers_[r].check_in.has_value();
    if (owes_signs && now - peers_[r].heard >= timeout_ - 2 * interval_) silent.push_back(names_[r]);
  }
  if (!silent.empty()) return give_up(silent);
  give_up_on_each_other();
}

void Control::give_up_on_each_other() const {
  channel_.abort(ExitCode::timeout, fmt::format("the ranks wait for each other in different calls, for {:.1f} s now",
                                                std::chrono::duration<double>(timeout_).count()));
}

void Control::judge_rank_0(Clock::time_point now) const {
  auto const patience = timeout_ + kGrace + std::min(rank() - 1, kTurns) * kTurn;
  if (now - std::max(wait_began_, peers_[0].heard) >= patience) give_up(std::span(names_).first(1));
}

void Control::give_up(std::span<RankName const> silent) const {
  channel_.abort(ExitCode::timeout, describe_silence(silent, timeout_));
}

void Control::expect_agreement(std::uint64_t agreement) const {
  if (agreement == agreement_) return;
  channel_.abort(
      ExitCode::unexpected,
      fmt::format("agreement {} met agreement {}: the ranks do not make the same calls", agreement_, agreement));
}

}  // namespace rankslice
