#include "comm/tcp_hub.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <list>
#include <numeric>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "comm/silent_ranks.hpp"
#include "comm/tcp_frame.hpp"
#include "core/host_name.hpp"
#include "core/literals.hpp"

namespace rankslice {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::uint32_t kMostHelloBytes = 4_KiB;
constexpr std::uint32_t kMostFrameBytes = 1_GiB;
constexpr milliseconds kHelloPatience{10'000};  // with one who connects and says nothing
constexpr milliseconds kLinger{2000};           // after a failure, for those who have not heard of it
constexpr milliseconds kLongestTick{200};
constexpr std::size_t kMostStrangers = 64;  // at a time, beside the ranks
constexpr std::size_t kMostRefusals = 4;    // that are remembered

struct Connection {
  UniqueSocket socket;
  FrameReader in{kMostHelloBytes};
  FrameWriter out{};
  std::optional<int> rank{};
  Clock::time_point came = Clock::now();
  bool gone = false;
};

class Hub {
 public:
  Hub(UniqueSocket listener, UniqueSocket rank_0, TcpHubOptions options)
      : listener_(std::move(listener)),
        options_(std::move(options)),
        seats_(static_cast<std::size_t>(options_.size), nullptr),
        hosts_(seats_.size()) {
    local_ = &connections_.emplace_back(Connection{.socket = std::move(rank_0)});
  }

  void run() {
    while (!is_over()) {
      wait();
      accept();
      for (auto& connection : connections_) receive(connection);
      judge(Clock::now());
      tell_who_left();
      for (auto& connection : connections_) send(connection);
      connections_.remove_if([](Connection const& connection) { return connection.gone; });
    }
  }

 private:
  [[nodiscard]] bool is_over() const;
  void wait();
  void accept();
  void refuse_all();
  void receive(Connection& from);
  void send(Connection& to);
  void judge(Clock::time_point now);

  void handle(Connection& from, Frame const& frame);
  void greet(Connection& who, TcpHello const& hello);
  void seat(Connection& who, TcpHello const& hello);
  void refuse(Connection& who, TcpRefusal const& refusal);
  void pass_on(Connection const& from, Frame const& frame);
  void leave(Connection& who);
  void tell_who_left();
  void lose(Connection& who, std::string const& why);
  void fail(TcpFailure failure);
  [[nodiscard]] std::size_t strangers() const;
  [[nodiscard]] std::string describe_missing() const;

  UniqueSocket listener_;
  TcpHubOptions options_;
  std::list<Connection> connections_;
  Connection* local_ = nullptr;     ///< Rank 0's, as long as it is there.
  std::vector<Connection*> seats_;  ///< By rank; null for those who are not there.
  std::vector<std::string> hosts_;  ///< By rank.
  std::vector<int> left_in_peace_;  ///< And the others do not know yet.
  std::vector<std::string> refusals_;
  bool started_ = false;
  std::optional<TcpFailure> failed_;
  Clock::time_point began_ = Clock::now();
  Clock::time_point heard_ = began_;  ///< When anything last came.
  Clock::time_point left_ = began_;   ///< When rank 0 left.
};

bool Hub::is_over() const {
  if (local_ != nullptr) return false;
  if (std::all_of(seats_.begin(), seats_.end(), [](auto const* seat) { return seat == nullptr; })) return true;
  auto const now = Clock::now();
  return failed_ ? now >= left_ + kLinger : now >= std::max(left_, heard_) + options_.timeout;
}

void Hub::wait() {
  std::vector<pollfd> sockets;
  auto const room = listener_.valid() && strangers() < kMostStrangers + seats_.size();
  if (room) sockets.push_back({.fd = listener_.get(), .events = POLLIN, .revents = 0});
  for (auto const& connection : connections_) {
    auto const events = connection.out.waiting_bytes() > 0 ? POLLIN | POLLOUT : POLLIN;
    sockets.push_back({.fd = connection.socket.get(), .events = static_cast<short>(events), .revents = 0});
  }
  auto const tick = std::clamp(options_.timeout / 20, milliseconds(1), kLongestTick);
  static_cast<void>(::poll(sockets.data(), sockets.size(), static_cast<int>(tick.count())));
}

void Hub::accept() {
  while (listener_.valid() && strangers() < kMostStrangers + seats_.size()) {
    auto socket = accept_from(listener_.get());
    if (!socket.valid()) {
      if (errno == EMFILE || errno == ENFILE) refuse_all();
      return;
    }
    set_up_connection(socket.get(), options_.timeout);
    connections_.push_back(Connection{.socket = std::move(socket)});
  }
}

/// For want of file descriptors.
void Hub::refuse_all() {
  auto const why = std::generic_category().message(errno);
  listener_.reset();
  if (started_) return;
  fail({ExitCode::bad_launch, fmt::format("rank 0 (host {}) cannot take all connections of {} ranks: {} (ulimit -n)",
                                          host_name(), options_.size, why)});
}

void Hub::receive(Connection& from) {
  try {
    while (!from.gone) {
      auto const frame = from.in.next(from.socket.get());
      if (!frame) break;
      heard_ = Clock::now();
      handle(from, *frame);
    }
  } catch (CommError const& error) {
    return lose(from, error.what());
  }
  auto const& state = from.in.state();
  if (from.gone || !state.ended) return;
  lose(from, describe_end(state));
}

void Hub::send(Connection& to) {
  if (to.gone && to.rank) return;  // for a refusal there is one try
  auto const state = to.out.flush(to.socket.get());
  if (state.ended && !to.gone) lose(to, describe_end(state));
}

void Hub::judge(Clock::time_point now) {
  for (auto& connection : connections_) {
    if (!connection.rank && &connection != local_ && now >= connection.came + kHelloPatience) connection.gone = true;
  }
  if (!started_ && !failed_ && now >= began_ + options_.timeout) fail({ExitCode::timeout, describe_missing()});
}

void Hub::handle(Connection& from, Frame const& frame) {
  if (!from.rank) {
    if (frame.header.kind != FrameKind::hello) throw NotAFrame{};
    return greet(from, unpack_hello(frame.payload));
  }
  switch (frame.header.kind) {
    case FrameKind::control:
    case FrameKind::data:
    case FrameKind::credit:
      return pass_on(from, frame);
    case FrameKind::failed:
      return fail(unpack_failure(frame.payload));
    case FrameKind::goodbye:
      left_in_peace_.push_back(*from.rank);
      return leave(from);
    default:
      throw NotAFrame{};
  }
}

void Hub::greet(Connection& who, TcpHello const& hello) {
  if (hello.version != TcpHello{}.version) {
    return refuse(who, {.wrong_job = false, .message = "the ranks run different versions of rankslice"});
  }
  if (hello.token != options_.token) {
    return refuse(who, {.wrong_job = true, .message = fmt::format("{} is of another run", options_.where)});
  }
  if (hello.size != options_.size || hello.rank < 0 || hello.rank >= options_.size) {
    return refuse(who, {.wrong_job = false,
                        .message = fmt::format("rank {} (host {}) was started as one of {} ranks, rank 0 as one of {}",
                                               hello.rank, hello.host, hello.size, options_.size)});
  }
  auto const& host = hosts_[static_cast<std::size_t>(hello.rank)];
  if (!host.empty()) {
    return refuse(who, {.wrong_job = false,
                        .message = fmt::format("two processes were started as rank {}: on {} and {}", hello.rank, host,
                                               hello.host)});
  }
  seat(who, hello);
}

void Hub::seat(Connection& who, TcpHello const& hello) {
  auto const rank = static_cast<std::size_t>(hello.rank);
  who.rank = hello.rank;
  who.in.allow(kMostFrameBytes);
  seats_[rank] = &who;
  hosts_[rank] = hello.host.empty() ? "unknown" : hello.host;
  who.out.put({.kind = FrameKind::welcome}, {});
  if (failed_) who.out.put({.kind = FrameKind::failed}, pack(*failed_));
  started_ = !failed_ && std::none_of(seats_.begin(), seats_.end(), [](auto const* seat) { return seat == nullptr; });
  if (!started_) return;
  auto const hosts = pack(hosts_);
  for (auto* const seat : seats_) seat->out.put({.kind = FrameKind::start}, hosts);
}

void Hub::refuse(Connection& who, TcpRefusal const& refusal) {
  who.out.put({.kind = FrameKind::refused}, pack(refusal));
  who.gone = true;
  if (refusal.wrong_job || refusals_.size() == kMostRefusals) return;
  if (std::find(refusals_.begin(), refusals_.end(), refusal.message) == refusals_.end()) {
    refusals_.push_back(refusal.message);
  }
}

void Hub::pass_on(Connection const& from, Frame const& frame) {
  auto header = frame.header;
  if (!started_ || header.peer < 0 || header.peer >= options_.size) throw NotAFrame{};
  auto* const to = seats_[static_cast<std::size_t>(header.peer)];
  if (failed_ || to == nullptr) return;  // whoever waits for one who left learns that at the deadline
  header.peer = *from.rank;
  to->out.put(header, frame.payload);
}

void Hub::leave(Connection& who) {
  who.gone = true;
  seats_[static_cast<std::size_t>(*who.rank)] = nullptr;
  if (&who != local_) return;
  local_ = nullptr;
  left_ = Clock::now();
}

void Hub::tell_who_left() {
  if (left_in_peace_.empty()) return;
  auto const ranks = pack(std::exchange(left_in_peace_, {}));
  for (auto* const seat : seats_) {
    if (seat != nullptr) seat->out.put({.kind = FrameKind::left}, ranks);
  }
}

void Hub::lose(Connection& who, std::string const& why) {
  if (!who.rank && &who != local_) {
    who.gone = true;
    return;
  }
  auto const rank = who.rank.value_or(0);
  auto& host = hosts_[static_cast<std::size_t>(rank)];
  auto const message = fmt::format("lost rank {} (host {}): {}", rank, host, why);
  who.rank = rank;
  leave(who);
  if (started_ || rank == 0) return fail({ExitCode::timeout, message});
  host.clear();  // it may come again
}

void Hub::fail(TcpFailure failure) {
  if (failed_) return;
  failed_ = std::move(failure);
  for (auto* const seat : seats_) {
    if (seat != nullptr) seat->out.put({.kind = FrameKind::failed}, pack(*failed_));
  }
}

std::size_t Hub::strangers() const {
  auto const is_stranger = [](Connection const& connection) { return !connection.rank; };
  return static_cast<std::size_t>(std::count_if(connections_.begin(), connections_.end(), is_stranger));
}

std::string Hub::describe_missing() const {
  std::vector<int> missing;
  for (std::size_t rank = 0; rank < seats_.size(); ++rank) {
    if (seats_[rank] == nullptr) missing.push_back(static_cast<int>(rank));
  }
  auto text = describe_absence(missing, options_.where, options_.timeout);
  if (!refusals_.empty()) text += fmt::format("; refused: {}", fmt::join(refusals_, "; "));
  return text;
}

}  // namespace

TcpHub::TcpHub(UniqueSocket listener, UniqueSocket rank_0, TcpHubOptions options)
    : thread_([hub = Hub(std::move(listener), std::move(rank_0), std::move(options))]() mutable {
        try {
          hub.run();
        } catch (...) {  // out of memory: the ranks see that their connections close
        }
      }) {}

}  // namespace rankslice
