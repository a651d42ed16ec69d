#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "rankslice/mpi.hpp"

#include "comm/backoff.hpp"
#include "comm/check_rank.hpp"
#include "comm/control.hpp"
#include "comm/lineage.hpp"
#include "comm/mpi_channel.hpp"
#include "comm/mpi_check.hpp"
#include "core/literals.hpp"

namespace rankslice {
namespace {

using std::chrono::milliseconds;

// MPI counts are ints, and pieces of this size travel faster than whole tensors (no huge rendezvous at once).
constexpr std::size_t kPieceBytes = 64_MiB;
constexpr milliseconds kWatchdogGrace{5000};  // a rank that can still be named is named first, and ended
constexpr int kGatherTag = 2;
constexpr int kTransferTag = 3;

MPI_Op mpi_op(Reduce op) {
  switch (op) {
    case Reduce::sum:
      return MPI_SUM;
    case Reduce::min:
      return MPI_MIN;
    case Reduce::max:
      return MPI_MAX;
  }
  return MPI_OP_NULL;
}

/// Cuts the front piece off `rest`.
template <typename Element>
std::span<Element> take_piece(std::span<Element>& rest) {
  auto const piece = rest.first(std::min(rest.size(), kPieceBytes / sizeof(Element)));
  rest = rest.subspan(piece.size());
  return piece;
}

/// Waits before there is a channel for signs of life: the deadline counts from the start.
void wait_for_setup(MPI_Comm comm, MPI_Request request, milliseconds timeout) {
  auto const began = Backoff::Clock::now();
  Backoff backoff;
  int done = 0;
  while (true) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), comm);
    if (done != 0) return;
    if (Backoff::Clock::now() - began > timeout) {
      abort_job(comm, ExitCode::timeout,
                fmt::format("not every rank set up its communicator within {:.1f} s",
                            std::chrono::duration<double>(timeout).count()));
    }
    backoff.pause();
  }
}

/// What each rank is called, from what this one is called. Collective.
std::vector<RankName> exchange_names(MPI_Comm comm, int name_rank, milliseconds timeout) {
  struct Card {
    int rank = 0;
    std::array<char, MPI_MAX_PROCESSOR_NAME> host{};
  };
  Card mine{.rank = name_rank};
  int length = 0;
  check_mpi(MPI_Get_processor_name(mine.host.data(), &length), comm);
  int size = 0;
  check_mpi(MPI_Comm_size(comm, &size), comm);
  std::vector<Card> cards(static_cast<std::size_t>(size));
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(&mine, sizeof mine, MPI_BYTE, cards.data(), sizeof mine, MPI_BYTE, comm, &request), comm);
  wait_for_setup(comm, request, timeout);
  std::vector<RankName> names;
  for (auto const& card : cards) names.push_back({card.rank, card.host.data()});
  return names;
}

void wait_for(MPI_Comm comm, Control& control, std::span<MPI_Request> requests) {
  control.wait_until([&] {
    int done = 0;
    check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), comm);
    return done != 0;
  });
}

std::unique_ptr<Watchdog> watchdog_of(RankName const& name, milliseconds timeout) {
  return std::make_unique<Watchdog>(timeout + kWatchdogGrace, fmt::format("rank {} (host {})", name.rank, name.host));
}

/// Pieces of one transfer.
class MpiTransfer final : public PendingTransfer {
 public:
  /// `control` outlives the transfer; `under_way` counts those that are not waited for.
  MpiTransfer(MPI_Comm comm, Control& control, std::vector<MPI_Request> requests, int& under_way)
      : comm_(comm), control_(control), requests_(std::move(requests)), under_way_(under_way) {
    if (!requests_.empty()) ++under_way_;
  }
  ~MpiTransfer() override { wait(); }
  MpiTransfer(MpiTransfer const&) = delete;
  MpiTransfer& operator=(MpiTransfer const&) = delete;

  void wait() override {
    if (requests_.empty()) return;
    wait_for(comm_, control_, requests_);
    requests_.clear();
    --under_way_;
  }

 private:
  MPI_Comm comm_;
  Control& control_;
  std::vector<MPI_Request> requests_;
  int& under_way_;
};

class MpiCommunicator final : public Communicator {
 public:
  /// `family` is that of the communicator that this one was split from.
  MpiCommunicator(UniqueMpiComm comm, std::shared_ptr<ControlFamily> family, Lineage lineage,
                  std::vector<RankName> names, milliseconds timeout)
      : comm_(std::move(comm)),
        timeout_(timeout),
        channel_(comm_.get()),
        family_(std::move(family)),
        lineage_(std::move(lineage)),
        control_(channel_, *family_, names, timeout,
                 watchdog_of(names[static_cast<std::size_t>(channel_.rank())], timeout)) {}
  ~MpiCommunicator() override;
  MpiCommunicator(MpiCommunicator const&) = delete;
  MpiCommunicator& operator=(MpiCommunicator const&) = delete;

  [[nodiscard]] int rank() const override { return control_.rank(); }
  [[nodiscard]] int size() const override { return control_.size(); }
  [[nodiscard]] std::string_view kind() const override { return "mpi"; }
  [[nodiscard]] std::string const& host(int rank) const override { return control_.name_of(rank).host; }

  void all_reduce(std::span<std::uint64_t> values, Reduce op) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override;
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override;

  void begin_step() override { control_.begin_step(); }
  [[nodiscard]] Outcome agree(Outcome const& mine) override;
  void progress() override {
    control_.progress();
    if (under_way_ > 0) control_.listen();
  }
  void wait_until(std::function<bool()> const& done) override { control_.wait_until(done); }
  [[noreturn]] void abort(ExitCode code, std::string const& message) override { abort_job(comm_.get(), code, message); }

 private:
  template <typename Start, typename Byte>
  [[nodiscard]] std::unique_ptr<PendingTransfer> start(std::span<Byte> bytes, Start const& start_piece);
  [[nodiscard]] std::vector<std::uint64_t> gather_sizes(std::uint64_t mine, int root);
  void send_pieces(std::span<std::byte const> bytes, int root);
  void receive_pieces(std::vector<std::vector<std::byte>>& everyone);

  UniqueMpiComm comm_;
  milliseconds timeout_;
  MpiChannel channel_;
  std::shared_ptr<ControlFamily> family_;
  Lineage lineage_;
  Control control_;
  int under_way_ = 0;  ///< Transfers that nobody has waited for yet.
};

// Collective, as MPI_Comm_free is. Where an exception that the ranks did not agree on takes this rank out alone, the
// others will not come: the communicator is left to the end of the process, which then can report its error at once.
MpiCommunicator::~MpiCommunicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  bool const alone = std::uncaught_exceptions() > 0 && !lineage_.failed_together();
  if (finalized != 0 || alone) {
    std::ignore = comm_.release();
    return;
  }
  try {
    control_.finish();
  } catch (...) {  // out of memory
    std::ignore = comm_.release();
  }
}

void MpiCommunicator::all_reduce(std::span<std::uint64_t> values, Reduce op) {
  while (!values.empty()) {
    auto const piece = take_piece(values);
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallreduce(MPI_IN_PLACE, piece.data(), static_cast<int>(piece.size()), MPI_UINT64_T, mpi_op(op),
                             comm_.get(), &request),
              comm_.get());
    wait_for(comm_.get(), control_, std::span(&request, 1));
  }
}

void MpiCommunicator::broadcast(std::span<std::byte> bytes, int root) {
  check_root(*this, root);
  while (!bytes.empty()) start_broadcast(take_piece(bytes), root)->wait();
}

std::vector<std::vector<std::byte>> MpiCommunicator::gather(std::span<std::byte const> bytes, int root) {
  check_root(*this, root);
  auto const sizes = gather_sizes(bytes.size(), root);
  std::vector<std::vector<std::byte>> everyone;
  // The root may have no memory for it all; the others must not wait for it then.
  on_every_rank(*this, [&] {
    if (rank() != root) return;
    for (auto const size : sizes) everyone.emplace_back(size);
    std::copy(bytes.begin(), bytes.end(), everyone[static_cast<std::size_t>(root)].begin());
  });
  if (rank() == root) {
    receive_pieces(everyone);
  } else {
    send_pieces(bytes, root);
  }
  return everyone;
}

std::vector<std::uint64_t> MpiCommunicator::gather_sizes(std::uint64_t mine, int root) {
  std::vector<std::uint64_t> sizes(rank() == root ? static_cast<std::size_t>(size()) : 0);
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Igather(&mine, 1, MPI_UINT64_T, sizes.data(), 1, MPI_UINT64_T, root, comm_.get(), &request),
            comm_.get());
  wait_for(comm_.get(), control_, std::span(&request, 1));
  return sizes;
}

void MpiCommunicator::send_pieces(std::span<std::byte const> bytes, int root) {
  while (!bytes.empty()) {
    auto const piece = take_piece(bytes);
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(
        MPI_Isend(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, root, kGatherTag, comm_.get(), &request),
        comm_.get());
    wait_for(comm_.get(), control_, std::span(&request, 1));
  }
}

/// On the root: one piece of every other rank at a time, until all are whole.
void MpiCommunicator::receive_pieces(std::vector<std::vector<std::byte>>& everyone) {
  std::vector<std::span<std::byte>> rest(everyone.begin(), everyone.end());
  rest[static_cast<std::size_t>(rank())] = {};
  while (std::any_of(rest.begin(), rest.end(), [](auto const& bytes) { return !bytes.empty(); })) {
    std::vector<MPI_Request> requests(rest.size(), MPI_REQUEST_NULL);
    for (std::size_t from = 0; from < rest.size(); ++from) {
      if (rest[from].empty()) continue;
      auto const piece = take_piece(rest[from]);
      check_mpi(MPI_Irecv(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, static_cast<int>(from), kGatherTag,
                          comm_.get(), &requests[from]),
                comm_.get());
    }
    wait_for(comm_.get(), control_, requests);
  }
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color) {
  // MPI has no split that can be polled: agreeing first makes sure that everyone is there, and the watchdog watches.
  on_every_rank(*this, [&] {
    if (color < 0) throw UsageError(fmt::format("the colour of a split must not be negative, but is {}", color));
  });
  MPI_Comm part = MPI_COMM_NULL;
  control_.begin_step();
  check_mpi(MPI_Comm_split(comm_.get(), color, rank(), &part), comm_.get());
  control_.end_step();
  UniqueMpiComm owned(part);
  check_mpi(MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN), part);
  auto names = exchange_names(part, control_.name().rank, timeout_);
  return std::make_unique<MpiCommunicator>(std::move(owned), family_, lineage_.part(), std::move(names), timeout_);
}

/// All pieces at once: `start_piece(piece, request)` starts one.
template <typename Start, typename Byte>
std::unique_ptr<PendingTransfer> MpiCommunicator::start(std::span<Byte> bytes, Start const& start_piece) {
  std::vector<MPI_Request> requests;
  while (!bytes.empty()) {
    auto const piece = take_piece(bytes);
    check_mpi(start_piece(piece, &requests.emplace_back(MPI_REQUEST_NULL)), comm_.get());
  }
  return std::make_unique<MpiTransfer>(comm_.get(), control_, std::move(requests), under_way_);
}

std::unique_ptr<PendingTransfer> MpiCommunicator::start_send(std::span<std::byte const> bytes, int to) {
  check_peer(*this, to);
  return start(bytes, [&](std::span<std::byte const> piece, MPI_Request* request) {
    return MPI_Isend(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, to, kTransferTag, comm_.get(), request);
  });
}

std::unique_ptr<PendingTransfer> MpiCommunicator::start_receive(std::span<std::byte> bytes, int from) {
  check_peer(*this, from);
  return start(bytes, [&](std::span<std::byte> piece, MPI_Request* request) {
    return MPI_Irecv(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, from, kTransferTag, comm_.get(), request);
  });
}

std::unique_ptr<PendingTransfer> MpiCommunicator::start_broadcast(std::span<std::byte> bytes, int root) {
  check_root(*this, root);
  return start(bytes, [&](std::span<std::byte> piece, MPI_Request* request) {
    return MPI_Ibcast(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, root, comm_.get(), request);
  });
}

Outcome MpiCommunicator::agree(Outcome const& mine) {
  auto agreed = control_.agree(mine);
  lineage_.note_agreement(agreed);
  return agreed;
}

void expect_mpi_is_ready() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) throw CommError(ExitCode::bad_launch, "MPI is not initialised");
  int level = MPI_THREAD_SINGLE;
  MPI_Query_thread(&level);
  if (level < MPI_THREAD_FUNNELED) {
    throw CommError(ExitCode::bad_launch, "MPI was initialised without threads: MPI_THREAD_FUNNELED is needed");
  }
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm, MpiOptions const& options) {
  if (options.timeout <= milliseconds(0)) {
    throw UsageError(fmt::format("the timeout must be positive, but is {} ms", options.timeout.count()));
  }
  expect_mpi_is_ready();
  MPI_Comm duplicate = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Comm_idup(comm, &duplicate, &request), comm);
  wait_for_setup(comm, request, options.timeout);
  UniqueMpiComm owned(duplicate);
  check_mpi(MPI_Comm_set_errhandler(duplicate, MPI_ERRORS_RETURN), duplicate);
  int rank = 0;
  check_mpi(MPI_Comm_rank(duplicate, &rank), duplicate);
  auto names = exchange_names(duplicate, rank, options.timeout);
  return std::make_unique<MpiCommunicator>(std::move(owned), std::make_shared<ControlFamily>(), Lineage(),
                                           std::move(names), options.timeout);
}

}  // namespace rankslice
