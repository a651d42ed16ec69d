#include "comm/caller_group.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace rankslice {
namespace {

constexpr auto kTopBit = std::uint64_t{1} << 63;

template <typename Element>
std::span<Element> take_piece(std::span<Element>& rest, std::size_t most_bytes) {
  auto const piece = rest.first(std::min(rest.size(), std::max<std::size_t>(1, most_bytes / sizeof(Element))));
  rest = rest.subspan(piece.size());
  return piece;
}

/// Unsigned numbers in the order of signed ones, and back.
void move_order(std::span<std::uint64_t> values) {
  for (auto& value : values) value ^= kTopBit;
}

}  // namespace

class CallerGroup::Transfer final : public PendingTransfer {
 public:
  Transfer(std::shared_ptr<CallerGroup> group, std::string what, Messages messages, Messages* queue)
      : group_(std::move(group)), what_(std::move(what)), messages_(std::move(messages)), queue_(queue) {}
  Transfer(Transfer const&) = delete;
  Transfer& operator=(Transfer const&) = delete;

  ~Transfer() override {
    try {
      finish();
    } catch (...) {
      group_->fail(std::current_exception());
    }
  }

  void wait() override {
    if (!done()) group_->run(what_, [this] { finish(); });
  }

 private:
  [[nodiscard]] bool done() const {
    return std::all_of(messages_.begin(), messages_.end(), [](auto const& message) { return message->done; });
  }

  void finish() {
    for (auto const& message : messages_) {
      while (!message->done) {
        auto const next = queue_ == nullptr ? message : queue_->front();
        if (queue_ != nullptr) queue_->pop_front();
        next->done = true;
        if (next->wait) next->wait();
      }
    }
  }

  std::shared_ptr<CallerGroup> group_;
  std::string what_;
  Messages messages_;
  Messages* queue_;
};

CallerGroup::CallerGroup(Collectives functions) : functions_(std::move(functions)) {
  auto const& f = functions_;
  auto const refuse = [&](std::string const& why) { throw UsageError(fmt::format("{}: {}", f.kind, why)); };
  if (f.rank < 0 || f.rank >= f.size) refuse(fmt::format("rank {} among {} ranks", f.rank, f.size));
  if ((f.start_send == nullptr) != (f.start_receive == nullptr))
    refuse("of start_send and start_receive one is missing");
  if ((f.all_reduce == nullptr) != (f.broadcast == nullptr)) refuse("of all_reduce and broadcast one is missing");
  if (f.size > 1 && !has_messages() && !has_collectives()) {
    refuse("neither start_send and start_receive nor all_reduce and broadcast are given");
  }
  if (f.largest_message == 0) refuse("the largest message has no bytes");
}

void CallerGroup::progress() {
  if (stop_) std::rethrow_exception(std::exchange(stop_, nullptr));
  if (functions_.progress) functions_.progress();
}

void CallerGroup::progress_in_wait() noexcept {
  if (stop_) return;
  try {
    progress();
  } catch (...) {
    stop_ = std::current_exception();
  }
}

void CallerGroup::fail(std::exception_ptr error) noexcept {
  if (!error_) error_ = std::move(error);
}

void CallerGroup::expect_no_error() const {
  if (error_) std::rethrow_exception(error_);
}

void CallerGroup::run(std::string const& what, std::function<void()> const& call) {
  expect_no_error();
  auto const told = [&](std::string const& text) {
    return std::make_exception_ptr(
        CommError(ExitCode::timeout, fmt::format("{}: {}: {}", functions_.kind, what, text)));
  };
  try {
    call();
  } catch (Error const&) {
    fail(std::current_exception());
  } catch (std::exception const& error) {
    fail(told(error.what()));
  } catch (...) {
    fail(told("an exception of unknown type"));
  }
  expect_no_error();
}

template <typename Byte, typename Start>
std::unique_ptr<PendingTransfer> CallerGroup::start(std::string what, std::span<Byte> bytes, Start const& start_piece,
                                                    Messages* queue) {
  Messages messages;
  auto transfer_of = [&] { return std::make_unique<Transfer>(shared_from_this(), what, std::move(messages), queue); };
  expect_no_error();
  try {
    while (!bytes.empty()) {
      auto const piece = take_piece(bytes, functions_.largest_message);
      auto const message = std::make_shared<Message>();
      run(what, [&] { message->wait = start_piece(piece); });
      messages.push_back(message);
      if (queue != nullptr) queue->push_back(message);
    }
  } catch (...) {
    transfer_of().reset();  // the pieces under way use the memory
    throw;
  }
  return transfer_of();
}

std::unique_ptr<PendingTransfer> CallerGroup::start_send(std::span<std::byte const> bytes, int to, int tag) {
  return start(
      fmt::format("send of {} bytes to rank {}", bytes.size(), to), bytes,
      [&](std::span<std::byte const> piece) { return functions_.start_send(piece, to, tag); }, nullptr);
}

std::unique_ptr<PendingTransfer> CallerGroup::start_receive(std::span<std::byte> bytes, int from, int tag) {
  return start(
      fmt::format("receive of {} bytes from rank {}", bytes.size(), from), bytes,
      [&](std::span<std::byte> piece) { return functions_.start_receive(piece, from, tag); }, &received_[{from, tag}]);
}

std::unique_ptr<PendingTransfer> CallerGroup::start_broadcast(std::span<std::byte> bytes, int root) {
  return start(
      fmt::format("broadcast of {} bytes from rank {}", bytes.size(), root), bytes,
      [&](std::span<std::byte> piece) { return functions_.broadcast(piece, root); }, nullptr);
}

void CallerGroup::all_reduce(std::span<std::uint64_t> values, Reduce op) {
  if (op != Reduce::sum) move_order(values);
  auto rest = values;
  while (!rest.empty()) {
    auto const piece = take_piece(rest, functions_.largest_message);
    // The signed type of the same size may look at the same memory.
    std::span const numbers(reinterpret_cast<std::int64_t*>(piece.data()), piece.size());
    run(fmt::format("all_reduce of {} numbers", numbers.size()), [&] { functions_.all_reduce(numbers, op); });
  }
  if (op != Reduce::sum) move_order(values);
}

Collectives CallerGroup::split(std::vector<int> const& colors) {
  Collectives part;
  run("split", [&] { part = functions_.split(colors); });
  return part;
}

}  // namespace rankslice
