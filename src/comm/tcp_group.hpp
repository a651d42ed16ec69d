#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/control_channel.hpp"
#include "comm/tcp_link.hpp"

namespace rankslice {

/// Bytes on their way; shared by who waits for them and by the stream in which they take their turn.
struct TcpTransit {
  std::span<std::byte const> rest;  ///< To be sent.
  std::span<std::byte> room;        ///< To be filled.
  std::uint64_t total = 0;
  bool moved = false;      ///< All of it, into the writer or into its room.
  std::uint64_t mark = 0;  ///< Where the writer must have come for what was sent to be gone.
};

/// The ranks of one communicator and what they have under way.
///
/// Note [Credit]. Between two ranks of a group each lane has a window for what may be under way and not received: who
/// sends stops when it is used up, and who receives gives credit as it takes bytes. So neither the hub nor a rank that
/// does something else ever holds more than a window for each rank that sends to it.
class TcpGroup final : public ControlChannel, private FrameSink {
 public:
  /// `members` are the ranks of the world, rising; this one is among them. `link` outlives the group.
  TcpGroup(TcpLink& link, std::uint64_t id, std::vector<int> members);
  ~TcpGroup() override;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return static_cast<int>(members_.size()); }
  void send(int to, std::vector<std::byte> message) override;
  [[nodiscard]] bool sending(int to) override;
  [[nodiscard]] std::optional<ControlArrival> receive() override;
  void pause(Backoff& backoff) override { link_.wait(backoff.next()); }
  [[nodiscard]] bool has_left(int rank) const override {
    return link_.has_left(members_[static_cast<std::size_t>(rank)]);
  }
  [[noreturn]] void abort(ExitCode code, std::string const& message) override { link_.abort(code, message); }

  [[nodiscard]] std::shared_ptr<TcpTransit> start_send(Lane lane, std::span<std::byte const> bytes, int to);
  [[nodiscard]] std::shared_ptr<TcpTransit> start_receive(Lane lane, std::span<std::byte> bytes, int from);
  [[nodiscard]] bool is_over(TcpTransit const& transit) const;
  /// Whether any data are to be sent or received.
  [[nodiscard]] bool has_transit() const { return under_way_ > 0; }

 private:
  static constexpr std::int64_t kWindowBytes = 256 << 10;

  /// To or from one rank, on one lane.
  struct Stream {
    std::deque<std::shared_ptr<TcpTransit>> out;
    std::int64_t credit = kWindowBytes;
    std::deque<std::shared_ptr<TcpTransit>> in;
    std::deque<Frame> early;  ///< Came before anybody asked for it.
    std::int64_t owed = 0;    ///< Taken, and not given credit for yet.
  };
  using Streams = std::vector<Stream>;  // by rank

  void take(Frame frame) override;
  void miss(int rank) override;
  bool put_data(FrameWriter& writer) override;
  bool put_data(FrameWriter& writer, Lane lane, int to);
  /// Puts `transit` into its queue, from which it goes as far as it can at once.
  [[nodiscard]] std::shared_ptr<TcpTransit> start(Lane lane, int peer, TcpTransit transit,
                                                  std::deque<std::shared_ptr<TcpTransit>> Stream::*queue);
  /// Gives up where this rank waits for one that has left.
  void expect_nothing_of(int leaver);
  void deliver(Lane lane, int from);
  void fill(TcpTransit& transit, Frame const& frame, int from);
  [[nodiscard]] Stream& stream(Lane lane, int rank);
  [[nodiscard]] int rank_of(int member) const;
  [[nodiscard]] FrameHeader header(FrameKind kind, Lane lane, int to) const;

  TcpLink& link_;
  std::uint64_t id_;
  std::vector<int> members_;
  int rank_;
  std::array<Streams, kLanes> lanes_;
  std::deque<ControlArrival> control_;
  std::vector<std::uint64_t> control_marks_;  ///< By rank: where the writer must have come for it to be gone.
  std::size_t under_way_ = 0;
  int turn_ = 0;  ///< The rank whose data go next.
};

}  // namespace rankslice
