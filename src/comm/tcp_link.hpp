#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "comm/silent_ranks.hpp"
#include "comm/tcp_frame.hpp"
#include "comm/tcp_join.hpp"

namespace rankslice {

/// What a group of ranks does with its frames.
class FrameSink {
 public:
  FrameSink() = default;
  FrameSink(FrameSink const&) = delete;
  FrameSink& operator=(FrameSink const&) = delete;
  virtual ~FrameSink() = default;

  /// Of the group.
  virtual void take(Frame frame) = 0;
  /// Nothing more comes from that rank of the world than what was taken.
  virtual void miss(int rank) = 0;
  /// Puts the next piece of data, if there is one that may go: whether it did.
  virtual bool put_data(FrameWriter& writer) = 0;
};

/// A rank's side of its connection to the hub; all its groups share it, on one thread. Nothing happens between calls.
class TcpLink {
 public:
  TcpLink(TcpConnection connection, int rank, std::chrono::milliseconds timeout);
  /// Leaves in peace, unless an exception that the ranks did not agree on takes this rank out: then they are told.
  ~TcpLink();
  TcpLink(TcpLink const&) = delete;
  TcpLink& operator=(TcpLink const&) = delete;

  [[nodiscard]] RankName const& name() const { return name_of(rank_); }
  [[nodiscard]] RankName const& name_of(int rank) const { return names_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] int size() const { return static_cast<int>(names_.size()); }
  [[nodiscard]] bool has_left(int rank) const { return left_.contains(rank); }

  /// Frames for `group` go to `sink`, also those that came before it.
  void enter(std::uint64_t group, FrameSink& sink);
  /// What still comes for `group` is dropped.
  void leave(std::uint64_t group);
  /// Another number for a group, which no rank takes twice.
  [[nodiscard]] std::uint64_t new_group();

  /// To be sent by `pump`.
  void put(FrameHeader const& header, std::span<std::byte const> payload) { connection_.writer.put(header, payload); }
  /// Sends and receives what can be without waiting. @throws CommError once the job has failed, here or elsewhere.
  void pump();
  /// For something to come or to go, at most for `patience`.
  void wait(std::chrono::microseconds patience) const;
  [[nodiscard]] FrameWriter const& writer() const { return connection_.writer; }
  [[noreturn]] void abort(ExitCode code, std::string const& message);

  /// Whether the last agreement was on a failure, so that all unwind together.
  bool failed_together = false;

 private:
  using Clock = std::chrono::steady_clock;

  void receive();
  void dispatch(Frame frame);
  void note_left(std::vector<int> const& ranks);
  void send();
  void lose_hub(Moved const& state);
  [[noreturn]] void fail(TcpFailure failure);
  void flush_until(Clock::time_point end);
  void drain_until(Clock::time_point end);

  TcpConnection connection_;
  int rank_;
  std::chrono::milliseconds timeout_;
  std::vector<RankName> names_;
  std::map<std::uint64_t, FrameSink*> sinks_;          // null for those that were left
  std::map<std::uint64_t, std::vector<Frame>> early_;  // for groups that this rank has not entered yet
  std::set<int> left_;                                 // in peace
  std::uint32_t groups_made_ = 0;
  std::optional<TcpFailure> failed_;
};

}  // namespace rankslice
