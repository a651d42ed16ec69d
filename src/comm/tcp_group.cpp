#include "comm/tcp_group.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/literals.hpp"

namespace rankslice {
namespace {

constexpr std::size_t kPieceBytes = 64_KiB;

/// What a frame takes of a window: an empty message takes some, too.
std::int64_t cost_of(std::size_t payload) { return static_cast<std::int64_t>(sizeof(FrameHeader) + payload); }

int position_of(std::vector<int> const& members, int rank) {
  return static_cast<int>(std::lower_bound(members.begin(), members.end(), rank) - members.begin());
}

}  // namespace

TcpGroup::TcpGroup(TcpLink& link, std::uint64_t id, std::vector<int> members)
    : link_(link),
      id_(id),
      members_(std::move(members)),
      rank_(position_of(members_, link.name().rank)),
      lanes_{Streams(members_.size()), Streams(members_.size())},
      control_marks_(members_.size(), 0) {
  link_.enter(id_, *this);
}

TcpGroup::~TcpGroup() { link_.leave(id_); }

void TcpGroup::send(int to, std::vector<std::byte> message) {
  link_.put(header(FrameKind::control, Lane::transfers, to), message);
  control_marks_[static_cast<std::size_t>(to)] = link_.writer().put_bytes();
  link_.pump();
}

bool TcpGroup::sending(int to) { return link_.writer().sent_bytes() < control_marks_[static_cast<std::size_t>(to)]; }

std::optional<ControlArrival> TcpGroup::receive() {
  if (control_.empty()) link_.pump();
  if (control_.empty()) return std::nullopt;
  auto arrival = std::move(control_.front());
  control_.pop_front();
  return arrival;
}

std::shared_ptr<TcpTransit> TcpGroup::start_send(Lane lane, std::span<std::byte const> bytes, int to) {
  return start(lane, to, {.rest = bytes, .room = {}, .total = bytes.size()}, &Stream::out);
}

std::shared_ptr<TcpTransit> TcpGroup::start_receive(Lane lane, std::span<std::byte> bytes, int from) {
  return start(lane, from, {.rest = {}, .room = bytes, .total = bytes.size()}, &Stream::in);
}

std::shared_ptr<TcpTransit> TcpGroup::start(Lane lane, int peer, TcpTransit transit,
                                            std::deque<std::shared_ptr<TcpTransit>> Stream::*queue) {
  auto shared = std::make_shared<TcpTransit>(transit);
  (stream(lane, peer).*queue).push_back(shared);
  ++under_way_;
  deliver(lane, peer);
  if (has_left(peer)) expect_nothing_of(peer);
  link_.pump();
  return shared;
}

bool TcpGroup::is_over(TcpTransit const& transit) const {
  return transit.moved && link_.writer().sent_bytes() >= transit.mark;
}

void TcpGroup::take(Frame frame) {
  auto const from = rank_of(frame.header.peer);
  auto const lane = frame.header.lane;
  switch (frame.header.kind) {
    case FrameKind::control:
      control_.push_back({.from = from, .bytes = std::move(frame.payload)});
      return;
    case FrameKind::credit:
      stream(lane, from).credit += static_cast<std::int64_t>(frame.header.total);
      return;
    case FrameKind::data:
      stream(lane, from).early.push_back(std::move(frame));
      return deliver(lane, from);
    default:
      throw NotAFrame{};
  }
}

void TcpGroup::miss(int rank) {
  auto const leaver = position_of(members_, rank);
  if (leaver < size() && members_[static_cast<std::size_t>(leaver)] == rank) expect_nothing_of(leaver);
}

void TcpGroup::expect_nothing_of(int leaver) {
  for (auto const lane : {Lane::transfers, Lane::collectives}) {
    auto const& way = stream(lane, leaver);
    if (way.in.empty() && way.out.empty()) continue;
    link_.abort(ExitCode::timeout, describe_leaver(link_.name_of(members_[static_cast<std::size_t>(leaver)])));
  }
}

bool TcpGroup::put_data(FrameWriter& writer) {
  if (under_way_ == 0) return false;
  for (int i = 0; i < size(); ++i) {
    auto const to = (turn_ + i) % size();
    if (!put_data(writer, Lane::collectives, to) && !put_data(writer, Lane::transfers, to)) continue;
    turn_ = to + 1;
    return true;
  }
  return false;
}

bool TcpGroup::put_data(FrameWriter& writer, Lane lane, int to) {
  auto& way = stream(lane, to);
  if (way.out.empty() || way.credit <= 0) return false;
  auto& transit = *way.out.front();
  auto const piece = transit.rest.first(std::min(transit.rest.size(), kPieceBytes));
  auto head = header(FrameKind::data, lane, to);
  head.total = transit.total;
  writer.put(head, piece);
  way.credit -= cost_of(piece.size());
  transit.rest = transit.rest.subspan(piece.size());
  if (!transit.rest.empty()) return true;
  transit.moved = true;
  transit.mark = writer.put_bytes();
  way.out.pop_front();
  --under_way_;
  return true;
}

void TcpGroup::deliver(Lane lane, int from) {
  auto& way = stream(lane, from);
  while (!way.in.empty() && !way.early.empty()) {
    auto& transit = *way.in.front();
    fill(transit, way.early.front(), from);
    way.owed += cost_of(way.early.front().payload.size());
    way.early.pop_front();
    if (!transit.room.empty()) continue;
    transit.moved = true;
    way.in.pop_front();
    --under_way_;
  }
  if (way.owed < kWindowBytes / 2) return;
  auto head = header(FrameKind::credit, lane, from);
  head.total = static_cast<std::uint64_t>(std::exchange(way.owed, 0));
  link_.put(head, {});
}

void TcpGroup::fill(TcpTransit& transit, Frame const& frame, int from) {
  if (frame.header.total != transit.total || frame.payload.size() > transit.room.size()) {
    link_.abort(
        ExitCode::unexpected,
        fmt::format("rank {} sent {} bytes where rank {} expected {}: the ranks do not make the same calls",
                    members_[static_cast<std::size_t>(from)], frame.header.total, link_.name().rank, transit.total));
  }
  std::copy(frame.payload.begin(), frame.payload.end(), transit.room.begin());
  transit.room = transit.room.subspan(frame.payload.size());
}

TcpGroup::Stream& TcpGroup::stream(Lane lane, int rank) {
  return lanes_.at(static_cast<std::size_t>(lane)).at(static_cast<std::size_t>(rank));
}

int TcpGroup::rank_of(int member) const {
  auto const rank = position_of(members_, member);
  if (rank >= size() || members_[static_cast<std::size_t>(rank)] != member) throw NotAFrame{};
  return rank;
}

FrameHeader TcpGroup::header(FrameKind kind, Lane lane, int to) const {
  return {.kind = kind, .lane = lane, .peer = members_[static_cast<std::size_t>(to)], .group = id_};
}

}  // namespace rankslice
