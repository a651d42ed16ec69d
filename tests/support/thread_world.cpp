#include "support/thread_world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>

namespace rankslice::test {
namespace {

using Bytes = std::vector<std::byte>;

/// A collective call on its way through the ranks.
struct Round {
  std::size_t arrived = 0;
  std::size_t left = 0;
  std::vector<std::int64_t> numbers;
  std::optional<Bytes> bytes;
};

/// What the ranks of a group share.
struct Group {
  explicit Group(std::vector<int> world_ranks) : ranks(std::move(world_ranks)) {}

  std::vector<int> ranks;                                                 ///< By their numbers in the world.
  std::map<std::tuple<int, int, int>, std::deque<Bytes>> messages;        ///< By sender, receiver and tag.
  std::map<std::uint64_t, Round> rounds;                                  ///< By their order.
  std::map<std::pair<std::uint64_t, int>, std::shared_ptr<Group>> parts;  ///< By the split's order and colour.
};

/// What all threads share: one lock for all groups.
struct Common {
  std::mutex mutex;
  std::condition_variable changed;
  std::chrono::milliseconds timeout{};
  std::set<int> gone;                                      ///< The ranks of the world whose main has ended.
  std::vector<std::pair<int, std::exception_ptr>> thrown;  ///< By whom, in the order of time.
};

std::int64_t combine(std::int64_t a, std::int64_t b, Reduce op) {
  switch (op) {
    case Reduce::sum:
      return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
    case Reduce::min:
      return std::min(a, b);
    case Reduce::max:
      return std::max(a, b);
  }
  return a;
}

/// One rank's side of a group.
class GroupRank : public std::enable_shared_from_this<GroupRank> {
 public:
  GroupRank(Common& common, std::shared_ptr<Group> group, int rank, Offers offers)
      : common_(common), group_(std::move(group)), rank_(rank), offers_(offers) {}

  /// They keep this object alive.
  [[nodiscard]] Collectives functions();

 private:
  void send(std::span<std::byte const> bytes, int to, int tag);
  void receive(std::span<std::byte> bytes, int from, int tag);
  void all_reduce(std::span<std::int64_t> values, Reduce op);
  void broadcast(std::span<std::byte> bytes, int root);
  [[nodiscard]] Collectives split(std::vector<int> const& colors);

  /// Until the others of `ranks` (of the world) have made `done` true.
  void wait(std::unique_lock<std::mutex>& lock, std::span<int const> ranks, std::function<bool()> const& done);
  void leave(std::uint64_t number, Round& round) {
    if (++round.left == group_->ranks.size()) group_->rounds.erase(number);
  }

  Common& common_;
  std::shared_ptr<Group> group_;
  int rank_;
  Offers offers_;
  std::uint64_t calls_ = 0;
  std::uint64_t splits_ = 0;
};

Collectives GroupRank::functions() {
  auto const self = shared_from_this();
  Collectives f{.rank = rank_, .size = static_cast<int>(group_->ranks.size()), .kind = "threads"};
  if (offers_ != Offers::collectives) {
    f.start_send = [self](auto bytes, int to, int tag) {
      self->send(bytes, to, tag);
      return WaitFunction();
    };
    f.start_receive = [self](auto bytes, int from, int tag) {
      return [self, bytes, from, tag] { self->receive(bytes, from, tag); };
    };
  }
  if (offers_ != Offers::messages) {
    f.all_reduce = [self](auto values, Reduce op) { self->all_reduce(values, op); };
    f.broadcast = [self](auto bytes, int root) {
      self->broadcast(bytes, root);
      return WaitFunction();
    };
  }
  if (offers_ != Offers::messages) f.split = [self](auto const& colors) { return self->split(colors); };
  return f;
}

void GroupRank::wait(std::unique_lock<std::mutex>& lock, std::span<int const> ranks,
                     std::function<bool()> const& done) {
  auto const gone = [&] {
    return std::find_if(ranks.begin(), ranks.end(), [&](int rank) { return common_.gone.contains(rank); });
  };
  common_.changed.wait_for(lock, common_.timeout, [&] { return done() || gone() != ranks.end(); });
  if (done()) return;
  if (gone() != ranks.end()) throw std::runtime_error(fmt::format("rank {} has left", *gone()));
  throw std::runtime_error("no answer in time");
}

void GroupRank::send(std::span<std::byte const> bytes, int to, int tag) {
  std::lock_guard const lock(common_.mutex);
  group_->messages[{rank_, to, tag}].emplace_back(bytes.begin(), bytes.end());
  common_.changed.notify_all();
}

void GroupRank::receive(std::span<std::byte> bytes, int from, int tag) {
  std::unique_lock lock(common_.mutex);
  auto& waiting = group_->messages[{from, rank_, tag}];
  wait(lock, std::span(group_->ranks).subspan(static_cast<std::size_t>(from), 1), [&] { return !waiting.empty(); });
  auto const message = std::move(waiting.front());
  waiting.pop_front();
  if (message.size() != bytes.size()) {
    throw std::logic_error(fmt::format("{} bytes came from rank {}, not {}", message.size(), from, bytes.size()));
  }
  std::copy(message.begin(), message.end(), bytes.begin());
}

void GroupRank::all_reduce(std::span<std::int64_t> values, Reduce op) {
  std::unique_lock lock(common_.mutex);
  auto const number = calls_++;
  auto& round = group_->rounds[number];
  if (round.arrived++ == 0) {
    round.numbers.assign(values.begin(), values.end());
  } else {
    if (round.numbers.size() != values.size()) throw std::logic_error("ranks reduce different numbers of numbers");
    std::transform(values.begin(), values.end(), round.numbers.begin(), round.numbers.begin(),
                   [op](auto a, auto b) { return combine(a, b, op); });
  }
  common_.changed.notify_all();
  wait(lock, group_->ranks, [&] { return round.arrived == group_->ranks.size(); });
  std::copy(round.numbers.begin(), round.numbers.end(), values.begin());
  leave(number, round);
}

void GroupRank::broadcast(std::span<std::byte> bytes, int root) {
  std::unique_lock lock(common_.mutex);
  auto const number = calls_++;
  auto& round = group_->rounds[number];
  if (rank_ == root) {
    round.bytes.emplace(bytes.begin(), bytes.end());
    common_.changed.notify_all();
  }
  wait(lock, group_->ranks, [&] { return round.bytes.has_value(); });
  if (round.bytes->size() != bytes.size()) throw std::logic_error("ranks broadcast different sizes");
  std::copy(round.bytes->begin(), round.bytes->end(), bytes.begin());
  leave(number, round);
}

Collectives GroupRank::split(std::vector<int> const& colors) {
  std::lock_guard const lock(common_.mutex);
  auto const color = colors.at(static_cast<std::size_t>(rank_));
  std::vector<int> ranks;
  int mine = 0;
  for (std::size_t r = 0; r < colors.size(); ++r) {
    if (colors[r] != color) continue;
    if (static_cast<int>(r) == rank_) mine = static_cast<int>(ranks.size());
    ranks.push_back(group_->ranks[r]);
  }
  auto& part = group_->parts[{splits_++, color}];
  if (part == nullptr) part = std::make_shared<Group>(std::move(ranks));
  return std::make_shared<GroupRank>(common_, part, mine, offers_)->functions();
}

Collectives functions_of(Common& common, std::shared_ptr<Group> const& group, int rank, ThreadWorld const& world) {
  auto functions = std::make_shared<GroupRank>(common, group, rank, world.offers)->functions();
  if (!world.hosts.empty()) functions.host = world.hosts.at(static_cast<std::size_t>(rank));
  if (world.change) world.change(functions);
  return functions;
}

/// Who threw what, in the order of time.
std::vector<std::pair<int, std::exception_ptr>> run(int ranks, std::function<void(Communicator&)> const& rank_main,
                                                    ThreadWorld const& world) {
  Common common;
  common.timeout = world.timeout;
  std::vector<int> all(static_cast<std::size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  auto const group = std::make_shared<Group>(all);
  auto const run_rank = [&](int rank) {
    std::exception_ptr error;
    try {
      rank_main(*make_communicator(functions_of(common, group, rank, world)));
    } catch (...) {
      error = std::current_exception();
    }
    std::lock_guard const lock(common.mutex);
    if (error) common.thrown.emplace_back(rank, error);
    common.gone.insert(rank);
    common.changed.notify_all();
  };
  {
    std::vector<std::jthread> threads;
    for (auto const rank : all) threads.emplace_back(run_rank, rank);
  }
  return common.thrown;
}

}  // namespace

std::vector<std::exception_ptr> exceptions_of_ranks(int ranks, std::function<void(Communicator&)> const& rank_main,
                                                    ThreadWorld const& world) {
  std::vector<std::exception_ptr> by_rank(static_cast<std::size_t>(ranks));
  for (auto const& [rank, error] : run(ranks, rank_main, world)) by_rank[static_cast<std::size_t>(rank)] = error;
  return by_rank;
}

void run_ranks(int ranks, std::function<void(Communicator&)> const& rank_main, ThreadWorld const& world) {
  if (auto const thrown = run(ranks, rank_main, world); !thrown.empty()) std::rethrow_exception(thrown.front().second);
}

}  // namespace rankslice::test
