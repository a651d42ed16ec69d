#include "comm/mpi_control.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <utility>

#include "comm/backoff.hpp"
#include "comm/mpi_check.hpp"

namespace rankslice {
namespace {

using std::chrono::milliseconds;

constexpr int kControlTag = 1;
constexpr milliseconds kLongestInterval{1000};
constexpr milliseconds kGrace{1000};          // how much later than rank 0 the others give up
constexpr milliseconds kTurn{100};            // between them, so that one speaks and the others are ended by it
constexpr milliseconds kWatchdogGrace{2000};  // a rank that can still be named is named first

int rank_in(MPI_Comm comm) {
  int rank = 0;
  check_mpi(MPI_Comm_rank(comm, &rank), comm);
  return rank;
}

/// Signs of life as they travel; here because a message must outlive its sending.
constexpr std::array kSigns{std::byte{0}, std::byte{1}, std::byte{2}};
static_assert(static_cast<int>(ControlKind::watching) == 2);

/// Armed as long as this rank waits, and after that as long as it is in a step.
class Watched {
 public:
  explicit Watched(Watchdog& dog) : dog_(dog), in_step_(dog.armed()) { dog_.arm(); }
  ~Watched() {
    if (!in_step_) dog_.disarm();
  }
  Watched(Watched const&) = delete;
  Watched& operator=(Watched const&) = delete;

 private:
  Watchdog& dog_;
  bool in_step_;
};

}  // namespace

MpiControl::MpiControl(MPI_Comm comm, std::vector<RankName> names, milliseconds timeout)
    : comm_(comm),
      names_(std::move(names)),
      timeout_(timeout),
      interval_(std::min(timeout / 10, kLongestInterval)),
      rank_(rank_in(comm)),
      peers_(names_.size()),
      watchdog_(timeout + kWatchdogGrace, fmt::format("rank {} (host {})", name().rank, name().host)) {}

void MpiControl::progress() {
  watchdog_.touch();
  auto const now = Clock::now();
  if (now < sign_due_) return;
  if (rank_ == 0) listen();
  give_sign(now, ControlKind::working);
}

void MpiControl::wait(std::span<MPI_Request> requests) {
  wait_until([&] { return completed(requests); });
}

void MpiControl::wait_until(std::function<bool()> const& done) {
  Watched const watched(watchdog_);
  wait_until(done, ControlKind::waiting, [this](auto now) { rank_ == 0 ? judge_collective(now) : judge_rank_0(now); });
}

Outcome MpiControl::agree(Outcome const& mine) {
  end_step();
  Watched const watched(watchdog_);
  auto stated = mine;
  stated.rank = rank_;
  return rank_ == 0 ? collect(stated) : ask(stated);
}

void MpiControl::finish() {
  std::ignore = agree({});
  std::vector<MPI_Request> signs;
  for (auto& peer : peers_) signs.push_back(std::exchange(peer.sign, MPI_REQUEST_NULL));
  wait(signs);
}

Outcome MpiControl::collect(Outcome const& mine) {
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

Outcome MpiControl::lowest_failure() const {
  auto const failed = std::find_if(peers_.begin(), peers_.end(),
                                   [](Peer const& peer) { return peer.check_in->code != ExitCode::done; });
  return failed == peers_.end() ? Outcome{} : *failed->check_in;
}

void MpiControl::send_verdict(Outcome const& verdict) {
  auto const bytes = encode({.kind = ControlKind::verdict, .agreement = agreement_++, .outcome = verdict});
  std::vector<MPI_Request> sends(peers_.size(), MPI_REQUEST_NULL);
  for (int to = 1; to < size(); ++to) {
    check_mpi(MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, to, kControlTag, comm_,
                        &sends[static_cast<std::size_t>(to)]),
              comm_);
  }
  wait_until([&] { return completed(sends); }, std::nullopt,
             [&](auto now) {
               if (now < wait_began_ + timeout_) return;
               std::vector<RankName> silent;
               for (std::size_t r = 1; r < sends.size(); ++r) {
                 if (sends[r] != MPI_REQUEST_NULL && !completed(std::span(sends).subspan(r, 1)))
                   silent.push_back(names_[r]);
               }
               if (!silent.empty()) give_up(silent);
             });
}

Outcome MpiControl::ask(Outcome const& mine) {
  auto const bytes = encode({.kind = ControlKind::check_in, .agreement = agreement_, .outcome = mine});
  std::array<MPI_Request, 1> send{};
  check_mpi(MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, 0, kControlTag, comm_, send.data()),
            comm_);
  wait_until([&] { return completed(send) && verdict_.has_value(); }, std::nullopt,
             [this](auto now) { judge_rank_0(now); });
  ++agreement_;
  return *std::exchange(verdict_, std::nullopt);
}

void MpiControl::wait_until(std::function<bool()> const& done, std::optional<ControlKind> sign,
                            std::function<void(Clock::time_point)> const& judge) {
  wait_began_ = Clock::now();
  Backoff backoff;
  while (true) {
    watchdog_.touch();
    listen();
    if (done()) return;
    auto const now = Clock::now();
    give_sign(now, sign);
    judge(now);
    backoff.pause();
  }
}

void MpiControl::listen() {
  if (size() == 1) return;
  while (true) {
    int arrived = 0;
    MPI_Status status;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, kControlTag, comm_, &arrived, &status), comm_);
    if (arrived == 0) return;
    receive(status);
  }
}

void MpiControl::receive(MPI_Status const& status) {
  int size = 0;
  check_mpi(MPI_Get_count(&status, MPI_BYTE, &size), comm_);
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  std::array<MPI_Request, 1> request{};
  check_mpi(MPI_Irecv(bytes.data(), size, MPI_BYTE, status.MPI_SOURCE, kControlTag, comm_, request.data()), comm_);
  // A long error message comes in parts, and its sender may stop in between.
  auto const began = Clock::now();
  Backoff backoff;
  while (!completed(request)) {
    watchdog_.touch();
    auto const source = static_cast<std::size_t>(status.MPI_SOURCE);
    if (Clock::now() - began > timeout_) give_up(std::span(names_).subspan(source, 1));
    backoff.pause();
  }
  note(status.MPI_SOURCE, decode(bytes));
}

void MpiControl::note(int source, ControlMessage const& message) {
  auto& peer = peers_[static_cast<std::size_t>(source)];
  peer.heard = Clock::now();
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
      peer.waits = source != rank_;
      peer.check_in = message.outcome;
      ++check_ins_;
      return;
    case ControlKind::verdict:
      expect_agreement(message.agreement);
      verdict_ = message.outcome;
      return;
  }
}

void MpiControl::give_sign(Clock::time_point now, std::optional<ControlKind> mine) {
  if (now < sign_due_) return;
  sign_due_ = now + interval_;
  if (rank_ != 0) {
    if (mine) send_sign(peers_[0], 0, *mine);
    return;
  }
  for (int to = 1; to < size(); ++to) {
    auto& peer = peers_[static_cast<std::size_t>(to)];
    if (peer.waits) send_sign(peer, to, ControlKind::watching);
  }
}

void MpiControl::send_sign(Peer& to, int rank, ControlKind kind) {
  if (!completed(std::span(&to.sign, 1))) return;
  auto const& sign = kSigns.at(static_cast<std::size_t>(kind));
  check_mpi(MPI_Isend(&sign, 1, MPI_BYTE, rank, kControlTag, comm_, &to.sign), comm_);
}

void MpiControl::judge_check_ins(Clock::time_point now) const {
  auto const missing = [](Peer const& peer) { return !peer.check_in.has_value(); };
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
    give_up(silent);
  }
  auto const all_wait =
      std::all_of(peers_.begin(), peers_.end(), [&](Peer const& peer) { return !missing(peer) || peer.waits; });
  if (all_wait && now - last_progress() >= timeout_) give_up_on_each_other();
}

MpiControl::Clock::time_point MpiControl::last_progress() const {
  auto last = wait_began_;
  for (auto const& peer : peers_) last = std::max(last, peer.worked);
  return last;
}

void MpiControl::judge_collective(Clock::time_point now) const {
  if (now - last_progress() < timeout_) return;
  std::vector<RankName> silent;
  for (std::size_t r = 1; r < peers_.size(); ++r) {
    if (now - peers_[r].heard >= timeout_ - 2 * interval_) silent.push_back(names_[r]);
  }
  if (!silent.empty()) give_up(silent);
  give_up_on_each_other();
}

void MpiControl::give_up_on_each_other() const {
  abort_job(comm_, ExitCode::timeout,
            fmt::format("the ranks wait for each other in different calls, for {:.1f} s now",
                        std::chrono::duration<double>(timeout_).count()));
}

void MpiControl::judge_rank_0(Clock::time_point now) const {
  auto const patience = timeout_ + kGrace + std::min(rank_ - 1, 10) * kTurn;
  if (now - std::max(wait_began_, peers_[0].heard) >= patience) give_up(std::span(names_).first(1));
}

void MpiControl::give_up(std::span<RankName const> silent) const {
  abort_job(comm_, ExitCode::timeout, describe_silence(silent, timeout_));
}

bool MpiControl::completed(std::span<MPI_Request> requests) const {
  int done = 0;
  check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), comm_);
  return done != 0;
}

void MpiControl::expect_agreement(std::uint64_t agreement) const {
  if (agreement == agreement_) return;
  abort_job(comm_, ExitCode::unexpected,
            fmt::format("agreement {} met agreement {}: the ranks do not make the same calls", agreement_, agreement));
}

}  // namespace rankslice
