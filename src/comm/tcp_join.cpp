#include "comm/tcp_join.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

namespace rankslice {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kGrace{1000};            // how much later than rank 0 the others give up: it knows the names
constexpr milliseconds kConnectPatience{3000};  // with one address
constexpr milliseconds kAnswerPatience{5000};   // with one that took the connection
constexpr milliseconds kFirstPause{20};
constexpr milliseconds kLongestPause{1000};

milliseconds left_until(Clock::time_point end) {
  return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(end - Clock::now()));
}

/// Nothing when the connection ends, or the time.
std::optional<Frame> next_frame(TcpConnection& connection, Clock::time_point end) {
  while (true) {
    auto const state = connection.writer.flush(connection.socket.get());
    if (auto frame = connection.reader.next(connection.socket.get())) return frame;
    if (state.ended || connection.reader.state().ended || Clock::now() >= end) return std::nullopt;
    wait_for_socket(connection.socket.get(), connection.writer.waiting_bytes() > 0, left_until(end));
  }
}

[[noreturn]] void raise(TcpFailure const& failure) { throw CommError(failure.code, failure.message); }

/// After the welcome: rank 0 has until its own deadline, which began no later than this.
void await_start(TcpConnection& connection, milliseconds timeout) {
  auto const patience = timeout + kGrace;
  auto const frame = next_frame(connection, Clock::now() + patience);
  if (!frame && connection.reader.state().ended) {
    throw CommError(ExitCode::timeout, "lost rank 0 before all ranks had come: its connection was closed");
  }
  if (!frame) {
    throw CommError(ExitCode::timeout, fmt::format("rank 0 said hello, and then nothing within {:.1f} s",
                                                   std::chrono::duration<double>(patience).count()));
  }
  if (frame->header.kind == FrameKind::failed) raise(unpack_failure(frame->payload));
  connection.hosts = unpack_hosts(frame->payload);
}

/// Whether there is rank 0 of this run at the other end; if not, `why` says what is.
bool is_welcome(TcpConnection& connection, TcpHello const& hello, Clock::time_point end, std::string& why) {
  connection.writer.put({.kind = FrameKind::hello}, pack(hello));
  why = "what listens there does not answer as rankslice does";
  try {
    auto const frame = next_frame(connection, end);
    if (!frame) return false;
    if (frame->header.kind == FrameKind::welcome) return true;
    if (frame->header.kind != FrameKind::refused) return false;
    auto const refusal = unpack_refusal(frame->payload);
    if (!refusal.wrong_job) throw CommError(ExitCode::bad_launch, refusal.message);
    why = refusal.message;
  } catch (NotAFrame const&) {
  }
  return false;
}

/// One try with every address.
std::optional<TcpConnection> try_once(Rendezvous const& rendezvous, TcpHello& hello, Clock::time_point end,
                                      std::string& why) {
  std::optional<MeetingPlace> place;
  if (!rendezvous.file.empty()) {
    place = read_meeting_place(rendezvous.file);
    if (place) hello.token = place->token;
  }
  auto const addresses = addresses_of(rendezvous, place);
  if (addresses.empty()) why = rendezvous.file.empty() ? "no such host" : "no such file";
  for (auto const& address : addresses) {
    TcpConnection connection{.socket = connect_to(address, std::min(kConnectPatience, left_until(end)), why)};
    if (!connection.socket.valid()) continue;
    if (is_welcome(connection, hello, std::min(end, Clock::now() + kAnswerPatience), why)) return connection;
  }
  return std::nullopt;
}

}  // namespace

TcpConnection join_hub(UniqueSocket socket, TcpHello const& hello, milliseconds timeout) {
  TcpConnection connection{.socket = std::move(socket)};
  std::string why;
  if (!is_welcome(connection, hello, Clock::now() + timeout, why)) throw CommError(ExitCode::bad_launch, why);
  await_start(connection, timeout);
  return connection;
}

TcpConnection join_hub(Rendezvous const& rendezvous, TcpHello hello, milliseconds timeout) {
  auto const end = Clock::now() + timeout + kGrace;
  auto pause = kFirstPause;
  std::string why;
  while (true) {
    if (auto connection = try_once(rendezvous, hello, end, why)) {
      set_up_connection(connection->socket.get(), timeout);
      await_start(*connection, timeout);
      return std::move(*connection);
    }
    if (Clock::now() + pause >= end) break;
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongestPause);
  }
  throw CommError(ExitCode::timeout, fmt::format("no word from rank 0 at {} within {:.1f} s: {}", rendezvous.text,
                                                 std::chrono::duration<double>(timeout).count(), why));
}

}  // namespace rankslice
