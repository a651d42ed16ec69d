#include "comm/tcp_link.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>

#include "core/literals.hpp"

namespace rankslice {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t kMostWaitingBytes = 256_KiB;  // of data, in the writer
constexpr milliseconds kLastWords{2000};              // for telling the others why this rank goes

std::vector<RankName> numbered(std::vector<std::string> const& hosts) {
  std::vector<RankName> names;
  for (auto const& host : hosts) names.push_back({static_cast<int>(names.size()), host});
  return names;
}

}  // namespace

TcpLink::TcpLink(TcpConnection connection, int rank, milliseconds timeout)
    : connection_(std::move(connection)), rank_(rank), timeout_(timeout), names_(numbered(connection_.hosts)) {}

TcpLink::~TcpLink() {
  if (failed_) return;
  try {
    bool const alone = std::uncaught_exceptions() > 0 && !failed_together;
    if (alone) {
      TcpFailure const failure{ExitCode::timeout,
                               fmt::format("rank {} (host {}) left after an error of its own", rank_, name().host)};
      put({.kind = FrameKind::failed}, pack(failure));
    }
    put({.kind = FrameKind::goodbye}, {});
    auto const end = Clock::now() + (alone ? kLastWords : timeout_);
    flush_until(end);
    // To close with bytes unread would take back what the hub has not read.
    ::shutdown(connection_.socket.get(), SHUT_WR);
    drain_until(end);
  } catch (...) {  // out of memory: the hub sees that the connection closes
  }
}

void TcpLink::enter(std::uint64_t group, FrameSink& sink) {
  sinks_[group] = &sink;
  for (auto& frame : std::exchange(early_[group], {})) sink.take(std::move(frame));
  early_.erase(group);
}

void TcpLink::leave(std::uint64_t group) { sinks_[group] = nullptr; }

std::uint64_t TcpLink::new_group() { return (static_cast<std::uint64_t>(rank_) << 32) + ++groups_made_; }

void TcpLink::pump() {
  if (failed_) fail(*failed_);
  try {
    receive();
    send();
  } catch (std::exception const& error) {
    // Whatever it was: from here on nobody's memory is touched again.
    if (!failed_) failed_ = {ExitCode::unexpected, error.what()};
    throw;
  }
}

void TcpLink::wait(std::chrono::microseconds patience) const {
  if (patience.count() == 0) return std::this_thread::yield();
  wait_for_socket(connection_.socket.get(), writer().waiting_bytes() > 0, patience);
}

void TcpLink::abort(ExitCode code, std::string const& message) {
  if (failed_) fail(*failed_);
  put({.kind = FrameKind::failed}, pack(TcpFailure{code, message}));
  flush_until(Clock::now() + kLastWords);
  fail({code, message});
}

void TcpLink::receive() {
  while (auto frame = connection_.reader.next(connection_.socket.get())) dispatch(std::move(*frame));
  if (connection_.reader.state().ended) lose_hub(connection_.reader.state());
}

void TcpLink::dispatch(Frame frame) {
  if (frame.header.kind == FrameKind::failed) fail(unpack_failure(frame.payload));
  if (frame.header.kind == FrameKind::left) return note_left(unpack_ranks(frame.payload));
  auto const sink = sinks_.find(frame.header.group);
  if (sink == sinks_.end()) {
    early_[frame.header.group].push_back(std::move(frame));
  } else if (sink->second != nullptr) {
    sink->second->take(std::move(frame));
  }
}

void TcpLink::note_left(std::vector<int> const& ranks) {
  left_.insert(ranks.begin(), ranks.end());
  for (auto const& [group, sink] : sinks_) {
    for (auto const rank : ranks) {
      if (sink != nullptr) sink->miss(rank);
    }
  }
}

void TcpLink::send() {
  auto& writer = connection_.writer;
  while (true) {
    bool more = false;
    for (auto const& [group, sink] : sinks_) {
      if (sink != nullptr && writer.waiting_bytes() < kMostWaitingBytes) more = sink->put_data(writer) || more;
    }
    auto const state = writer.flush(connection_.socket.get());
    if (state.ended) {
      receive();  // the reason may lie there
      lose_hub(state);
    }
    if (!more || writer.waiting_bytes() > 0) return;
  }
}

void TcpLink::lose_hub(Moved const& state) {
  fail({ExitCode::timeout,
        fmt::format("lost rank 0 (host {}), through which all ranks speak: {}", name_of(0).host, describe_end(state))});
}

void TcpLink::fail(TcpFailure failure) {
  failed_ = std::move(failure);
  throw CommError(failed_->code, failed_->message);
}

void TcpLink::flush_until(Clock::time_point end) {
  auto& writer = connection_.writer;
  while (!writer.flush(connection_.socket.get()).ended && writer.waiting_bytes() > 0 && Clock::now() < end) {
    wait_for_socket(connection_.socket.get(), true, milliseconds(10));
  }
}

void TcpLink::drain_until(Clock::time_point end) {
  while (Clock::now() < end) {
    while (connection_.reader.next(connection_.socket.get())) {
    }
    if (connection_.reader.state().ended) return;
    wait_for_socket(connection_.socket.get(), false, milliseconds(10));
  }
}

}  // namespace rankslice
