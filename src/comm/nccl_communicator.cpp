#include <fmt/format.h>

#include <chrono>
#include <exception>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "rankslice/nccl.hpp"

#include "comm/backoff.hpp"
#include "comm/check_rank.hpp"
#include "comm/gpu_cards.hpp"
#include "comm/lineage.hpp"
#include "comm/nccl_calls.hpp"
#include "comm/nccl_gpu.hpp"
#include "comm/nccl_queue.hpp"
#include "comm/silent_ranks.hpp"
#include "device/cuda_current.hpp"

namespace rankslice {
namespace {

using Kind = NcclOperation::Kind;

constexpr std::size_t kLeastStaging = 4096;
constexpr std::chrono::seconds kGrace{1};

/// What a rank does alone, as an error that it can tell the others.
template <typename Step>
void or_device_error(Step const& step) {
  try {
    step();
  } catch (NcclFailure const& failure) {
    throw DeviceError(failure.what());
  }
}

/// Rank 0's, on every rank. Collective.
ncclUniqueId share_id(Communicator& base) {
  ncclUniqueId id{};
  on_every_rank(base, [&] {
    if (base.rank() == 0) or_device_error([&] { check_nccl(ncclGetUniqueId(&id)); });
  });
  base.broadcast(std::as_writable_bytes(std::span(id.internal)), 0);
  return id;
}

class NcclCommunicator final : public Communicator {
 public:
  /// `owned` is `base`, or null where that is the caller's. Collective, on ranks that may use NCCL.
  NcclCommunicator(Communicator& base, std::unique_ptr<Communicator> owned, NcclOptions const& options, RankName name,
                   std::shared_ptr<NcclFamily> family);
  ~NcclCommunicator() override;
  NcclCommunicator(NcclCommunicator const&) = delete;
  NcclCommunicator& operator=(NcclCommunicator const&) = delete;

  [[nodiscard]] int rank() const override { return base_.rank(); }
  [[nodiscard]] int size() const override { return base_.size(); }
  [[nodiscard]] std::string_view kind() const override { return "nccl"; }
  [[nodiscard]] std::string const& host(int rank) const override { return base_.host(rank); }
  [[nodiscard]] bool takes_device_memory() const override { return true; }

  void all_reduce(std::span<std::uint64_t> values, Reduce op) override;
  void broadcast(std::span<std::byte> bytes, int root) override { start_broadcast(bytes, root)->wait(); }
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override;
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override;
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override;

  void begin_step() override { base_.begin_step(); }
  [[nodiscard]] Outcome agree(Outcome const& mine) override;
  void progress() override;
  void wait_until(std::function<bool()> const& done) override;
  [[noreturn]] void abort(ExitCode code, std::string const& message) override;

 private:
  class Transfer;

  [[nodiscard]] std::shared_ptr<NcclOperation> add(NcclOperation operation);
  void expect_alive() const;
  void start_together(ncclUniqueId const& id);
  void start(ncclUniqueId const& id);
  void launch_all();
  [[noreturn]] void give_up(NcclFailure const& failure);
  void abort_self() noexcept;
  void abort_nccl() noexcept;
  void hear_what_others_say();

  std::unique_ptr<Communicator> owned_;
  Communicator& base_;
  NcclOptions options_;
  RankName name_;
  std::optional<NcclQueue> queue_;  // before `comm_`, which works on its memory until its end
  NcclComm comm_;
  std::shared_ptr<NcclFamily> family_;
  Lineage lineage_;
};

class NcclCommunicator::Transfer final : public PendingTransfer {
 public:
  Transfer(NcclCommunicator& world, std::shared_ptr<NcclOperation> operation)
      : world_(world), operation_(std::move(operation)) {}
  ~Transfer() override {
    try {
      wait();
    } catch (...) {  // the communicator is done for, and says so at its next call
    }
  }
  Transfer(Transfer const&) = delete;
  Transfer& operator=(Transfer const&) = delete;

  void wait() override {
    if (operation_->done()) return;
    world_.wait_until([this] { return operation_->done(); });
  }

 private:
  NcclCommunicator& world_;
  std::shared_ptr<NcclOperation> operation_;
};

NcclCommunicator::NcclCommunicator(Communicator& base, std::unique_ptr<Communicator> owned, NcclOptions const& options,
                                   RankName name, std::shared_ptr<NcclFamily> family)
    : owned_(std::move(owned)), base_(base), options_(options), name_(std::move(name)), family_(std::move(family)) {
  on_every_rank(base_, [&] { or_device_error([&] { queue_.emplace(comm_, options.device, options.staging_bytes); }); });
  auto const id = share_id(base_);
  try {
    start_together(id);
  } catch (...) {
    abort_self();
    throw;
  }
  family_->members.push_back({.comm = &comm_, .queue = &*queue_});
}

/// Every rank learns whether all have started: a rank that failed by itself speaks before those that only missed it.
void NcclCommunicator::start_together(ncclUniqueId const& id) {
  std::optional<NcclFailure> failure;
  auto const tell = [&] {
    throw DeviceError(
        fmt::format("rank {} (host {}, GPU {}): {}", name_.rank, name_.host, options_.device, failure->what()));
  };
  on_every_rank(base_, [&] {
    try {
      start(id);
    } catch (NcclFailure const& error) {
      failure = error;
    }
    if (failure && failure->code != ExitCode::timeout) tell();
  });
  on_every_rank(base_, [&] {
    if (failure) tell();
  });
}

/// Not by `base_.wait_until`, whose deadline would end the job, while ranks can go on without NCCL.
void NcclCommunicator::start(ncclUniqueId const& id) {
  CurrentGpu const here(options_.device);
  check_stream(here.error());
  auto const began = Backoff::Clock::now();
  Backoff backoff;
  comm_.start_init(size(), id, rank());
  while (!comm_.settled()) {
    if (Backoff::Clock::now() - began > options_.start_timeout) {
      throw NcclFailure(ExitCode::timeout,
                        fmt::format("NCCL: did not start within {:.1f} s: NCCL_DEBUG=INFO shows how far it came",
                                    std::chrono::duration<double>(options_.start_timeout).count()));
    }
    base_.progress();
    backoff.pause();
  }
}

// Collective, as the end of an NCCL communicator is. Where an exception that the ranks did not agree on takes this rank
// out alone, the others will not come.
NcclCommunicator::~NcclCommunicator() {
  bool const alone = std::uncaught_exceptions() > 0 && !lineage_.failed_together();
  try {
    if (!family_->failure && !alone) {
      launch_all();
      comm_.start_finalize();
      base_.wait_until([&] { return comm_.settled(); });
      comm_.destroy();
    }
  } catch (...) {  // nothing is lost, as all transfers were waited for
  }
  abort_self();
  std::erase_if(family_->members, [this](auto const& member) { return member.comm == &comm_; });
}

void NcclCommunicator::all_reduce(std::span<std::uint64_t> values, Reduce op) {
  auto const bytes = std::as_writable_bytes(values);
  Transfer(*this, add({.kind = Kind::reduce, .bytes = bytes, .op = op})).wait();
}

std::vector<std::vector<std::byte>> NcclCommunicator::gather(std::span<std::byte const> bytes, int root) {
  launch_all();
  return base_.gather(bytes, root);
}

std::unique_ptr<PendingTransfer> NcclCommunicator::start_send(std::span<std::byte const> bytes, int to) {
  check_peer(*this, to);
  std::span const unchanged(const_cast<std::byte*>(bytes.data()), bytes.size());
  return std::make_unique<Transfer>(*this, add({.kind = Kind::send, .bytes = unchanged, .peer = to}));
}

std::unique_ptr<PendingTransfer> NcclCommunicator::start_receive(std::span<std::byte> bytes, int from) {
  check_peer(*this, from);
  return std::make_unique<Transfer>(*this, add({.kind = Kind::receive, .bytes = bytes, .peer = from}));
}

std::unique_ptr<PendingTransfer> NcclCommunicator::start_broadcast(std::span<std::byte> bytes, int root) {
  check_root(*this, root);
  return std::make_unique<Transfer>(*this, add({.kind = Kind::broadcast, .bytes = bytes, .peer = root}));
}

std::unique_ptr<Communicator> NcclCommunicator::split(int color) {
  launch_all();
  auto part = base_.split(color);
  auto& ranks = *part;
  auto made = std::make_unique<NcclCommunicator>(ranks, std::move(part), options_, name_, family_);
  made->lineage_ = lineage_.part();
  return made;
}

Outcome NcclCommunicator::agree(Outcome const& mine) {
  launch_all();
  auto agreed = base_.agree(mine);
  lineage_.note_agreement(agreed);
  return agreed;
}

void NcclCommunicator::progress() {
  expect_alive();
  base_.progress();
  if (family_->idle()) return;
  try {
    family_->advance();
  } catch (NcclFailure const& failure) {
    give_up(failure);
  }
}

/// Every wait: `base` polls, listens to the others and keeps the deadline.
void NcclCommunicator::wait_until(std::function<bool()> const& done) {
  expect_alive();
  std::optional<NcclFailure> failure;
  try {
    base_.wait_until([&] {
      try {
        family_->advance();
        return done();
      } catch (NcclFailure const& error) {
        failure = error;
        return true;
      }
    });
  } catch (...) {
    family_->failure = std::current_exception();
    abort_nccl();
    throw;
  }
  if (failure) give_up(*failure);
}

/// `base` first, which needs no GPU to tell the others, and often ends the process.
void NcclCommunicator::abort(ExitCode code, std::string const& message) {
  try {
    base_.abort(code, message);
  } catch (...) {
    family_->failure = std::current_exception();
  }
  abort_nccl();
  std::rethrow_exception(family_->failure);
}

void NcclCommunicator::give_up(NcclFailure const& failure) {
  if (failure.code == ExitCode::timeout) hear_what_others_say();
  abort(failure.code,
        fmt::format("rank {} (host {}, GPU {}): {}", name_.rank, name_.host, options_.device, failure.what()));
}

/// Where another rank was the cause, that rank, or whoever missed it, has more to say than NCCL here: it speaks first.
void NcclCommunicator::hear_what_others_say() {
  auto const end = std::chrono::steady_clock::now() + kGrace;
  try {
    base_.wait_until([&] { return std::chrono::steady_clock::now() >= end; });
  } catch (...) {
    family_->failure = std::current_exception();
    abort_nccl();
    throw;
  }
}

void NcclCommunicator::abort_self() noexcept {
  NcclFamily::Member const me{.comm = &comm_, .queue = &*queue_};
  abort_members({&me, 1});
}

void NcclCommunicator::abort_nccl() noexcept { family_->abort(); }

/// Nobody looks after NCCL during the calls of `base`, and other ranks may need what was started before them.
void NcclCommunicator::launch_all() {
  expect_alive();
  if (!family_->all_launched()) wait_until([&] { return family_->all_launched(); });
}

std::shared_ptr<NcclOperation> NcclCommunicator::add(NcclOperation operation) {
  expect_alive();
  try {
    operation.on_gpu = !operation.bytes.empty() && lies_on_gpu(operation.bytes, options_.device);
  } catch (NcclFailure const& failure) {
    give_up(failure);
  }
  auto added = std::make_shared<NcclOperation>(operation);
  queue_->add(added);
  return added;
}

void NcclCommunicator::expect_alive() const {
  if (family_->failure) std::rethrow_exception(family_->failure);
}

std::optional<NcclRefusal> find_refusal(Communicator& base, NcclOptions const& options) {
  if (options.staging_bytes < kLeastStaging) {
    throw UsageError(
        fmt::format("NCCL needs at least {} bytes for staging, not {}", kLeastStaging, options.staging_bytes));
  }
  return refuse_nccl(exchange_cards(base, gpu_card(base.host(base.rank()), options)));
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& base, NcclOptions const& options) {
  if (auto const refusal = find_refusal(base, options)) {
    DeviceError error(refusal->message);
    error.rank = refusal->rank;
    throw error;
  }
  return std::make_unique<NcclCommunicator>(base, nullptr, options, RankName{base.rank(), base.host(base.rank())},
                                            std::make_shared<NcclFamily>());
}

std::string why_no_nccl(Communicator& base, NcclOptions const& options) {
  auto const refusal = find_refusal(base, options);
  return refusal ? refusal->message : "";
}

}  // namespace rankslice
