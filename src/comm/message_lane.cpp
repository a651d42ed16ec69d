#include "comm/message_lane.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/control_message.hpp"
#include "core/literals.hpp"

namespace rankslice {
namespace {

constexpr std::size_t kReducedAtOnce = 1_MiB / sizeof(std::uint64_t);

using Transfers = std::vector<std::unique_ptr<PendingTransfer>>;

void wait_for_all(Transfers const& transfers) {
  for (auto const& transfer : transfers) transfer->wait();
}

class SeveralTransfers final : public PendingTransfer {
 public:
  explicit SeveralTransfers(Transfers transfers) : transfers_(std::move(transfers)) {}
  void wait() override { wait_for_all(transfers_); }

 private:
  Transfers transfers_;
};

/// A binomial tree over the ranks, in which `root` is the top. A rank's place is its distance from the root; its parent
/// is the place without the lowest set bit, and its children are those that set one lower bit more.
class Tree {
 public:
  Tree(MessageLane const& lane, int root)
      : size_(lane.size()), root_(root), place_((lane.rank() - root + size_) % size_) {}

  [[nodiscard]] bool is_top() const { return place_ == 0; }
  [[nodiscard]] int parent() const { return rank_at(place_ & (place_ - 1)); }
  /// The child with the fewest ranks below it first.
  [[nodiscard]] std::vector<int> children() const {
    std::vector<int> ranks;
    for (int bit = 1; bit < size_ && (place_ & bit) == 0; bit <<= 1) {
      if (place_ + bit < size_) ranks.push_back(rank_at(place_ + bit));
    }
    return ranks;
  }

 private:
  [[nodiscard]] int rank_at(int place) const { return (place + root_) % size_; }

  int size_;
  int root_;
  int place_;
};

std::uint64_t combine(std::uint64_t a, std::uint64_t b, Reduce op) {
  switch (op) {
    case Reduce::sum:
      return a + b;
    case Reduce::min:
      return std::min(a, b);
    case Reduce::max:
      return std::max(a, b);
  }
  return a;
}

void reduce_to_rank_0(MessageLane& lane, std::span<std::uint64_t> values, Reduce op) {
  Tree const tree(lane, 0);
  std::vector<std::uint64_t> theirs(values.size());
  for (auto const child : tree.children()) {
    lane.start_receive(std::as_writable_bytes(std::span(theirs)), child)->wait();
    std::transform(values.begin(), values.end(), theirs.begin(), values.begin(),
                   [op](auto a, auto b) { return combine(a, b, op); });
  }
  if (!tree.is_top()) lane.start_send(std::as_bytes(values), tree.parent())->wait();
}

/// On the root: the size of what each rank has.
std::vector<std::uint64_t> gather_sizes(MessageLane& lane, std::uint64_t mine, int root) {
  auto const my_size = std::as_writable_bytes(std::span(&mine, 1));
  if (lane.rank() != root) {
    lane.start_send(my_size, root)->wait();
    return {};
  }
  std::vector<std::uint64_t> sizes(static_cast<std::size_t>(lane.size()));
  Transfers transfers;
  for (int from = 0; from < lane.size(); ++from) {
    auto& size = sizes[static_cast<std::size_t>(from)];
    size = mine;
    if (from != root) transfers.push_back(lane.start_receive(std::as_writable_bytes(std::span(&size, 1)), from));
  }
  wait_for_all(transfers);
  return sizes;
}

}  // namespace

void all_reduce(MessageLane& lane, std::span<std::uint64_t> values, Reduce op) {
  while (!values.empty()) {
    auto const piece = values.first(std::min(values.size(), kReducedAtOnce));
    values = values.subspan(piece.size());
    reduce_to_rank_0(lane, piece, op);
    broadcast(lane, std::as_writable_bytes(piece), 0);
  }
}

void broadcast(MessageLane& lane, std::span<std::byte> bytes, int root) {
  Tree const tree(lane, root);
  if (!tree.is_top()) lane.start_receive(bytes, tree.parent())->wait();
  Transfers sends;
  auto const children = tree.children();
  for (auto child = children.rbegin(); child != children.rend(); ++child) {  // who has most to pass on comes first
    sends.push_back(lane.start_send(bytes, *child));
  }
  wait_for_all(sends);
}

std::unique_ptr<PendingTransfer> start_broadcast(MessageLane& lane, std::span<std::byte> bytes, int root) {
  if (lane.rank() != root) return lane.start_receive(bytes, root);
  Transfers sends;
  for (int to = 0; to < lane.size(); ++to) {
    if (to != root) sends.push_back(lane.start_send(bytes, to));
  }
  return std::make_unique<SeveralTransfers>(std::move(sends));
}

std::vector<std::vector<std::byte>> gather(Communicator& world, MessageLane& lane, std::span<std::byte const> bytes,
                                           int root) {
  auto const sizes = gather_sizes(lane, bytes.size(), root);
  std::vector<std::vector<std::byte>> everyone;
  on_every_rank(world, [&] {
    for (auto const size : sizes) everyone.emplace_back(size);
  });
  if (lane.rank() != root) {
    lane.start_send(bytes, root)->wait();
    return everyone;
  }
  Transfers transfers;
  for (int from = 0; from < lane.size(); ++from) {
    auto& theirs = everyone[static_cast<std::size_t>(from)];
    if (from == root) {
      std::copy(bytes.begin(), bytes.end(), theirs.begin());
    } else {
      transfers.push_back(lane.start_receive(theirs, from));
    }
  }
  wait_for_all(transfers);
  return everyone;
}

Outcome agree_by_collectives(Communicator& world, Outcome const& mine) {
  auto const ranks = static_cast<std::uint64_t>(world.size());
  auto lowest = mine.code == ExitCode::done ? ranks : static_cast<std::uint64_t>(world.rank());
  world.all_reduce(std::span(&lowest, 1), Reduce::min);
  if (lowest == ranks) return {};
  auto const root = static_cast<int>(lowest);
  ControlMessage message{.kind = ControlKind::verdict, .outcome = mine};
  message.outcome.rank = root;
  auto bytes = encode(message);
  auto size = std::uint64_t{bytes.size()};
  world.broadcast(std::as_writable_bytes(std::span(&size, 1)), root);
  bytes.resize(size);
  world.broadcast(bytes, root);
  return decode(bytes).outcome;
}

std::vector<int> exchange_colors(Communicator& world, int color) {
  on_every_rank(world, [&] {
    if (color < 0) throw UsageError(fmt::format("the colour of a split must not be negative, but is {}", color));
  });
  std::vector<std::uint64_t> shared(static_cast<std::size_t>(world.size()));
  shared[static_cast<std::size_t>(world.rank())] = static_cast<std::uint64_t>(color);
  world.all_reduce(shared, Reduce::sum);
  std::vector<int> colors;
  for (auto const one : shared) colors.push_back(static_cast<int>(one));
  return colors;
}

std::vector<int> members_of(std::span<int const> colors, int color) {
  std::vector<int> members;
  for (std::size_t rank = 0; rank < colors.size(); ++rank) {
    if (colors[rank] == color) members.push_back(static_cast<int>(rank));
  }
  return members;
}

}  // namespace rankslice
