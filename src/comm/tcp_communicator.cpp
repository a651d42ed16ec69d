#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/tcp.hpp"

#include "comm/check_rank.hpp"
#include "comm/control.hpp"
#include "comm/message_lane.hpp"
#include "comm/tcp_group.hpp"
#include "comm/tcp_hub.hpp"
#include "comm/tcp_join.hpp"
#include "comm/tcp_link.hpp"
#include "comm/tcp_rendezvous.hpp"
#include "core/host_name.hpp"

namespace rankslice {
namespace {

using std::chrono::milliseconds;

/// What all communicators of a rank stand on. It ends with the last of them, from the link to the hub.
struct TcpSession {
  explicit TcpSession(milliseconds deadline) : timeout(deadline) {}

  milliseconds timeout;
  std::optional<TcpHub> hub{};            ///< On rank 0.
  std::optional<PublishedPlace> place{};  ///< On rank 0, of a rendezvous by file.
  std::optional<TcpLink> link{};
  ControlFamily controls{};
};

class TcpTransfer final : public PendingTransfer {
 public:
  /// `control` and `group` outlive the transfer.
  TcpTransfer(Control& control, TcpGroup const& group, std::shared_ptr<TcpTransit> transit)
      : control_(control), group_(group), transit_(std::move(transit)) {}
  ~TcpTransfer() override {
    try {
      wait();
    } catch (...) {  // who waits for anything else is told; the memory is not touched any more
    }
  }
  TcpTransfer(TcpTransfer const&) = delete;
  TcpTransfer& operator=(TcpTransfer const&) = delete;

  void wait() override {
    if (!group_.is_over(*transit_)) {
      control_.wait_until([this] { return group_.is_over(*transit_); });
    }
  }

 private:
  Control& control_;
  TcpGroup const& group_;
  std::shared_ptr<TcpTransit> transit_;
};

class TcpLane final : public MessageLane {
 public:
  TcpLane(Lane lane, TcpGroup& group, Control& control) : lane_(lane), group_(group), control_(control) {}

  [[nodiscard]] int rank() const override { return group_.rank(); }
  [[nodiscard]] int size() const override { return group_.size(); }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    return std::make_unique<TcpTransfer>(control_, group_, group_.start_send(lane_, bytes, to));
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override {
    return std::make_unique<TcpTransfer>(control_, group_, group_.start_receive(lane_, bytes, from));
  }

 private:
  Lane lane_;
  TcpGroup& group_;
  Control& control_;
};

std::vector<RankName> names_of(TcpLink const& link, std::vector<int> const& members) {
  std::vector<RankName> names;
  for (auto const member : members) names.push_back(link.name_of(member));
  return names;
}

class TcpCommunicator final : public Communicator {
 public:
  TcpCommunicator(std::shared_ptr<TcpSession> session, std::uint64_t group, std::vector<int> const& members)
      : session_(std::move(session)),
        group_(*session_->link, group, members),
        control_(group_, session_->controls, names_of(*session_->link, members), session_->timeout, nullptr) {}

  [[nodiscard]] int rank() const override { return group_.rank(); }
  [[nodiscard]] int size() const override { return group_.size(); }
  [[nodiscard]] std::string_view kind() const override { return "tcp"; }
  [[nodiscard]] std::string const& host(int rank) const override { return control_.name_of(rank).host; }

  void all_reduce(std::span<std::uint64_t> values, Reduce op) override {
    rankslice::all_reduce(collectives_, values, op);
  }
  void broadcast(std::span<std::byte> bytes, int root) override {
    check_root(*this, root);
    rankslice::broadcast(collectives_, bytes, root);
  }
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override {
    check_root(*this, root);
    return rankslice::gather(*this, collectives_, bytes, root);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    check_peer(*this, to);
    return transfers_.start_send(bytes, to);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override {
    check_peer(*this, from);
    return transfers_.start_receive(bytes, from);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override {
    check_root(*this, root);
    return rankslice::start_broadcast(collectives_, bytes, root);
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override;

  [[nodiscard]] Outcome agree(Outcome const& mine) override {
    auto agreed = control_.agree(mine);
    session_->link->failed_together = agreed.code != ExitCode::done;
    return agreed;
  }
  void progress() override {
    control_.progress();
    if (group_.has_transit()) control_.listen();
  }
  void wait_until(std::function<bool()> const& done) override { control_.wait_until(done); }
  [[noreturn]] void abort(ExitCode code, std::string const& message) override { session_->link->abort(code, message); }

 private:
  std::shared_ptr<TcpSession> session_;
  TcpGroup group_;
  Control control_;
  TcpLane transfers_{Lane::transfers, group_, control_};
  TcpLane collectives_{Lane::collectives, group_, control_};
};

std::unique_ptr<Communicator> TcpCommunicator::split(int color) {
  auto const members = members_of(exchange_colors(*this, color), color);
  // The first rank of each part numbers it.
  std::vector<std::uint64_t> numbers(static_cast<std::size_t>(size()), 0);
  if (members.front() == rank()) numbers[static_cast<std::size_t>(rank())] = session_->link->new_group();
  all_reduce(numbers, Reduce::sum);
  std::vector<int> world_ranks;
  for (auto const member : members) world_ranks.push_back(control_.name_of(member).rank);
  return std::make_unique<TcpCommunicator>(session_, numbers[static_cast<std::size_t>(members.front())], world_ranks);
}

void check(TcpOptions const& options) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    throw UsageError(fmt::format("rank {} among {} ranks", options.rank, options.size));
  }
  if (options.timeout <= milliseconds(0)) {
    throw UsageError(fmt::format("the timeout must be positive, but is {} ms", options.timeout.count()));
  }
}

/// On rank 0: opens the rendezvous and comes to it.
TcpConnection host_ranks(TcpSession& session, Rendezvous const& rendezvous, TcpHello hello) {
  auto listener = listen_on(rendezvous.port);
  auto const place = make_meeting_place(port_of(listener.get()));
  if (!rendezvous.file.empty()) hello.token = place.token;
  auto ends = socket_pair();
  session.hub.emplace(
      std::move(listener), std::move(ends.first),
      TcpHubOptions{.size = hello.size, .token = hello.token, .where = rendezvous.text, .timeout = session.timeout});
  if (!rendezvous.file.empty()) session.place.emplace(rendezvous.file, place);
  return join_hub(std::move(ends.second), hello, session.timeout);
}

}  // namespace

std::unique_ptr<Communicator> make_tcp_communicator(TcpOptions const& options) {
  check(options);
  auto const rendezvous = parse_rendezvous(options.rendezvous);
  TcpHello const hello{.rank = options.rank, .size = options.size, .host = host_name(), .token = {}};
  auto session = std::make_shared<TcpSession>(options.timeout);
  session->link.emplace(
      options.rank == 0 ? host_ranks(*session, rendezvous, hello) : join_hub(rendezvous, hello, options.timeout),
      options.rank, options.timeout);
  std::vector<int> everyone(static_cast<std::size_t>(options.size));
  std::iota(everyone.begin(), everyone.end(), 0);
  return std::make_unique<TcpCommunicator>(std::move(session), 0, everyone);
}

}  // namespace rankslice
