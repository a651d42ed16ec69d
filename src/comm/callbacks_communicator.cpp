#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "rankslice/callbacks.hpp"

#include "comm/backoff.hpp"
#include "comm/caller_group.hpp"
#include "comm/check_rank.hpp"
#include "comm/message_lane.hpp"
#include "core/host_name.hpp"

namespace rankslice {
namespace {

/// The ranks of the group that form a communicator, in their order.
struct Members {
  std::vector<int> ranks;
  int mine = 0;  ///< The place of this rank among them.
};

/// Messages of one tag between the members.
class TaggedLane final : public MessageLane {
 public:
  TaggedLane(CallerGroup& group, Members const& members, int tag) : group_(group), members_(members), tag_(tag) {}

  [[nodiscard]] int rank() const override { return members_.mine; }
  [[nodiscard]] int size() const override { return static_cast<int>(members_.ranks.size()); }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    return group_.start_send(bytes, group_rank(to), tag_);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override {
    return group_.start_receive(bytes, group_rank(from), tag_);
  }

 private:
  [[nodiscard]] int group_rank(int member) const { return members_.ranks[static_cast<std::size_t>(member)]; }

  CallerGroup& group_;
  Members const& members_;
  int tag_;
};

Members everyone_in(Collectives const& functions) {
  Members all{.ranks = std::vector<int>(static_cast<std::size_t>(functions.size)), .mine = functions.rank};
  std::iota(all.ranks.begin(), all.ranks.end(), 0);
  return all;
}

class CallbacksCommunicator final : public Communicator {
 public:
  /// All ranks of a new group.
  CallbacksCommunicator(std::shared_ptr<CallerGroup> const& group, std::vector<std::string> hosts)
      : CallbacksCommunicator(group, everyone_in(group->functions()), std::move(hosts),
                              std::exchange(group->next_tag, 2)) {}
  /// Two tags from `tag` on are this communicator's.
  CallbacksCommunicator(std::shared_ptr<CallerGroup> group, Members members, std::vector<std::string> hosts, int tag)
      : group_(std::move(group)),
        members_(std::move(members)),
        hosts_(std::move(hosts)),
        transfers_(*group_, members_, tag),
        collectives_(*group_, members_, tag + 1) {}
  CallbacksCommunicator(CallbacksCommunicator const&) = delete;
  CallbacksCommunicator& operator=(CallbacksCommunicator const&) = delete;

  void exchange_hosts();

  [[nodiscard]] int rank() const override { return members_.mine; }
  [[nodiscard]] int size() const override { return static_cast<int>(members_.ranks.size()); }
  [[nodiscard]] std::string_view kind() const override { return group_->functions().kind; }
  [[nodiscard]] std::string const& host(int rank) const override { return hosts_.at(static_cast<std::size_t>(rank)); }
  [[nodiscard]] bool can_send() const override { return group_->has_messages(); }

  void all_reduce(std::span<std::uint64_t> values, Reduce op) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override;
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override;
  [[nodiscard]] Outcome agree(Outcome const& mine) override { return agree_by_collectives(*this, mine); }

  void progress() override { group_->progress(); }
  void wait_until(std::function<bool()> const& done) override;
  [[noreturn]] void abort(ExitCode code, std::string const& message) override;

 private:
  void check_can_message(int peer) const;
  /// Whether the caller's own collective calls reach the members, and nobody else.
  [[nodiscard]] bool serves_members() const {
    return size() > 1 && size() == group_->functions().size && group_->has_collectives();
  }
  [[nodiscard]] std::vector<std::vector<std::byte>> gather_by_broadcasts(std::span<std::byte const> bytes, int root);
  [[nodiscard]] std::unique_ptr<Communicator> part_by_function(std::vector<int> const& colors, int color);
  [[nodiscard]] int agree_on_tag();
  [[nodiscard]] std::vector<std::string> hosts_of(std::span<int const> ranks) const;

  std::shared_ptr<CallerGroup> group_;
  Members members_;
  std::vector<std::string> hosts_;
  TaggedLane transfers_;
  TaggedLane collectives_;
};

void CallbacksCommunicator::exchange_hosts() {
  auto const& named = group_->functions().host;
  auto const mine = named.empty() ? host_name() : named;
  for (auto const& bytes : all_gather(*this, std::as_bytes(std::span(mine)))) {
    hosts_.emplace_back(reinterpret_cast<char const*>(bytes.data()), bytes.size());
  }
}

void CallbacksCommunicator::all_reduce(std::span<std::uint64_t> values, Reduce op) {
  group_->expect_no_error();
  serves_members() ? group_->all_reduce(values, op) : rankslice::all_reduce(collectives_, values, op);
}

void CallbacksCommunicator::broadcast(std::span<std::byte> bytes, int root) {
  check_root(*this, root);
  group_->expect_no_error();
  serves_members() ? group_->start_broadcast(bytes, root)->wait() : rankslice::broadcast(collectives_, bytes, root);
}

std::unique_ptr<PendingTransfer> CallbacksCommunicator::start_broadcast(std::span<std::byte> bytes, int root) {
  check_root(*this, root);
  return serves_members() ? group_->start_broadcast(bytes, root)
                          : rankslice::start_broadcast(collectives_, bytes, root);
}

std::vector<std::vector<std::byte>> CallbacksCommunicator::gather(std::span<std::byte const> bytes, int root) {
  check_root(*this, root);
  if (size() == 1 || group_->has_messages()) return rankslice::gather(*this, collectives_, bytes, root);
  return gather_by_broadcasts(bytes, root);
}

/// Everyone gets everything, one rank's after another's, and only the root keeps it.
std::vector<std::vector<std::byte>> CallbacksCommunicator::gather_by_broadcasts(std::span<std::byte const> bytes,
                                                                                int root) {
  std::vector<std::uint64_t> sizes(members_.ranks.size());
  sizes[static_cast<std::size_t>(rank())] = bytes.size();
  all_reduce(sizes, Reduce::sum);
  std::vector<std::vector<std::byte>> everyone;
  std::vector<std::byte> passing;
  on_every_rank(*this, [&] {
    passing.resize(*std::max_element(sizes.begin(), sizes.end()));
    for (auto const size : sizes) everyone.emplace_back(rank() == root ? size : 0);
  });
  for (int from = 0; from < size(); ++from) {
    auto const their = static_cast<std::size_t>(from);
    auto const theirs = rank() == root ? std::span(everyone[their]) : std::span(passing).first(sizes[their]);
    if (rank() == from) std::copy(bytes.begin(), bytes.end(), theirs.begin());
    broadcast(theirs, from);
  }
  if (rank() != root) everyone.clear();
  return everyone;
}

std::unique_ptr<PendingTransfer> CallbacksCommunicator::start_send(std::span<std::byte const> bytes, int to) {
  check_can_message(to);
  return transfers_.start_send(bytes, to);
}

std::unique_ptr<PendingTransfer> CallbacksCommunicator::start_receive(std::span<std::byte> bytes, int from) {
  check_can_message(from);
  return transfers_.start_receive(bytes, from);
}

std::unique_ptr<Communicator> CallbacksCommunicator::split(int color) {
  auto const colors = exchange_colors(*this, color);
  if (group_->functions().split && size() == group_->functions().size) return part_by_function(colors, color);
  auto const parts = std::set(colors.begin(), colors.end()).size();
  if (!group_->has_messages() && parts > 1 && parts < colors.size()) {
    throw UsageError(
        fmt::format("{}: with neither split nor start_send, {} ranks cannot become {} parts", kind(), size(), parts));
  }
  auto const members = members_of(colors, color);
  Members part;
  for (auto const member : members) {
    if (member == rank()) part.mine = static_cast<int>(part.ranks.size());
    part.ranks.push_back(members_.ranks[static_cast<std::size_t>(member)]);
  }
  return std::make_unique<CallbacksCommunicator>(group_, std::move(part), hosts_of(members), agree_on_tag());
}

std::unique_ptr<Communicator> CallbacksCommunicator::part_by_function(std::vector<int> const& colors, int color) {
  auto const members = members_of(colors, color);
  auto const mine = std::find(members.begin(), members.end(), rank()) - members.begin();
  auto functions = group_->split(colors);
  std::shared_ptr<CallerGroup> group;
  on_every_rank(*this, [&] {
    group = std::make_shared<CallerGroup>(std::move(functions));
    auto const& f = group->functions();
    if (f.size != static_cast<int>(members.size()) || f.rank != mine) {
      throw UsageError(fmt::format("{}: split gave rank {} of {} instead of rank {} of {}", kind(), f.rank, f.size,
                                   mine, members.size()));
    }
  });
  return std::make_unique<CallbacksCommunicator>(group, hosts_of(members));
}

/// Tags that none of the members uses: parts that share two ranks never share a tag.
int CallbacksCommunicator::agree_on_tag() {
  auto tag = static_cast<std::uint64_t>(group_->next_tag);
  all_reduce(std::span(&tag, 1), Reduce::max);
  group_->next_tag = static_cast<int>(tag) + 2;
  return static_cast<int>(tag);
}

std::vector<std::string> CallbacksCommunicator::hosts_of(std::span<int const> ranks) const {
  std::vector<std::string> hosts;
  for (auto const rank : ranks) hosts.push_back(host(rank));
  return hosts;
}

void CallbacksCommunicator::wait_until(std::function<bool()> const& done) {
  auto const timeout = group_->functions().timeout;
  auto const began = Backoff::Clock::now();
  Backoff backoff;
  while (!done()) {
    if (Backoff::Clock::now() - began > timeout) {
      throw CommError(ExitCode::timeout, fmt::format("{}: what rank {} waits for was not done within {:.1f} s", kind(),
                                                     rank(), std::chrono::duration<double>(timeout).count()));
    }
    group_->progress_in_wait();
    backoff.pause();
  }
}

void CallbacksCommunicator::abort(ExitCode code, std::string const& message) {
  CommError const error(code, message);
  group_->fail(std::make_exception_ptr(error));
  if (group_->functions().abort) group_->functions().abort(code, message);
  throw error;
}

void CallbacksCommunicator::check_can_message(int peer) const {
  check_peer(*this, peer);
  if (group_->has_messages()) return;
  throw UsageError(fmt::format("{}: nothing can be sent to one rank: start_send is not given", kind()));
}

}  // namespace

std::unique_ptr<Communicator> make_communicator(Collectives group) {
  auto world = std::make_unique<CallbacksCommunicator>(std::make_shared<CallerGroup>(std::move(group)),
                                                       std::vector<std::string>{});
  world->exchange_hosts();
  return world;
}

}  // namespace rankslice
