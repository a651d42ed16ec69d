#include "support/misbehaving_communicator.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

namespace rankslice::test {

using Effect = TransitFault::Effect;
using Bytes = std::vector<std::byte>;

struct MisbehavingCommunicator::State {
  TransitFault fault;
  std::map<CallKind, unsigned> calls;
  std::map<CallKind, Bytes> last;  ///< What came in the last call.
  bool struck = false;

  /// Counts a call; what the fault does to its bytes, if it strikes it. Throws, or waits, where that is what it does.
  Effect enter(CallKind call) {
    auto const number = calls[call]++;
    if (fault.effect == Effect::none || call != fault.call || number != fault.number) return Effect::none;
    struck = true;
    if (fault.effect == Effect::delay || fault.effect == Effect::vanish) std::this_thread::sleep_for(fault.time);
    if (fault.effect == Effect::fail) throw std::runtime_error("the call fails on purpose");
    if (fault.effect == Effect::vanish) throw std::runtime_error("this rank never came");
    return fault.effect;
  }

  void flip(std::span<std::byte> bytes) const {
    if (bytes.empty()) return;
    auto const bit = fault.bit % (bytes.size() * 8);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }

  /// What is given away in the place of `bytes`.
  [[nodiscard]] Bytes given(std::span<std::byte const> bytes, Effect effect) const {
    Bytes copy(bytes.begin(), bytes.end());
    if (effect == Effect::flip_given) flip(copy);
    return copy;
  }

  /// `bytes` have come, where `before` stood.
  void take(CallKind call, std::span<std::byte> bytes, Bytes const& before, Effect effect) {
    Bytes const came(bytes.begin(), bytes.end());
    if (effect == Effect::flip_taken) flip(bytes);
    if (effect == Effect::lose_taken) std::copy(before.begin(), before.end(), bytes.begin());
    if (effect == Effect::take_last) {
      auto const& old = last[call];
      std::copy_n(old.begin(), std::min(old.size(), bytes.size()), bytes.begin());
    }
    last[call] = came;
  }
};

namespace {

/// A transfer of which this rank gives `copy`, or takes into `bytes`.
class FaultyTransfer final : public PendingTransfer {
 public:
  FaultyTransfer(std::unique_ptr<PendingTransfer> inner, Bytes copy, std::function<void()> arrived)
      : copy_(std::move(copy)), inner_(std::move(inner)), arrived_(std::move(arrived)) {}
  FaultyTransfer(FaultyTransfer const&) = delete;
  FaultyTransfer& operator=(FaultyTransfer const&) = delete;
  ~FaultyTransfer() override {
    inner_.reset();  // waits
    if (arrived_) arrived_();
  }

  void wait() override {
    inner_->wait();
    if (auto const arrived = std::exchange(arrived_, nullptr)) arrived();
  }

 private:
  Bytes copy_;
  std::unique_ptr<PendingTransfer> inner_;
  std::function<void()> arrived_;
};

Bytes copy_of(std::span<std::byte const> bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

MisbehavingCommunicator::MisbehavingCommunicator(Communicator& inner, TransitFault const& fault)
    : ForwardingCommunicator(inner), state_(std::make_shared<State>(State{.fault = fault, .calls = {}, .last = {}})) {}

MisbehavingCommunicator::MisbehavingCommunicator(std::unique_ptr<Communicator> part, std::shared_ptr<State> state)
    : ForwardingCommunicator(*part), part_(std::move(part)), state_(std::move(state)) {}

unsigned MisbehavingCommunicator::calls(CallKind call) const {
  auto const found = state_->calls.find(call);
  return found == state_->calls.end() ? 0 : found->second;
}

bool MisbehavingCommunicator::struck() const { return state_->struck; }

void MisbehavingCommunicator::all_reduce(std::span<std::uint64_t> values, Reduce op) {
  auto const effect = state_->enter(CallKind::all_reduce);
  auto const bytes = std::as_writable_bytes(values);
  auto const before = copy_of(bytes);
  if (effect == Effect::flip_given) state_->flip(bytes);
  next().all_reduce(values, op);
  state_->take(CallKind::all_reduce, bytes, before, effect);
}

void MisbehavingCommunicator::broadcast(std::span<std::byte> bytes, int root) { start_broadcast(bytes, root)->wait(); }

std::vector<std::vector<std::byte>> MisbehavingCommunicator::gather(std::span<std::byte const> bytes, int root) {
  auto const effect = state_->enter(CallKind::gather);
  auto everyone = next().gather(state_->given(bytes, effect), root);
  // The fault is in what another rank sent.
  auto const theirs = rank() == root && size() > 1 ? std::optional((root + 1) % size()) : std::nullopt;
  if (theirs) {
    auto& came = everyone[static_cast<std::size_t>(*theirs)];
    state_->take(CallKind::gather, came, Bytes(came.size()), effect);
  }
  return everyone;
}

std::unique_ptr<PendingTransfer> MisbehavingCommunicator::start_send(std::span<std::byte const> bytes, int to) {
  auto const effect = state_->enter(CallKind::send);
  auto copy = state_->given(bytes, effect);
  auto transfer = next().start_send(copy, to);
  return std::make_unique<FaultyTransfer>(std::move(transfer), std::move(copy), nullptr);
}

std::unique_ptr<PendingTransfer> MisbehavingCommunicator::start_receive(std::span<std::byte> bytes, int from) {
  auto const effect = state_->enter(CallKind::receive);
  auto arrived = [state = state_, bytes, before = copy_of(bytes), effect] {
    state->take(CallKind::receive, bytes, before, effect);
  };
  return std::make_unique<FaultyTransfer>(next().start_receive(bytes, from), Bytes(), arrived);
}

std::unique_ptr<PendingTransfer> MisbehavingCommunicator::start_broadcast(std::span<std::byte> bytes, int root) {
  auto const effect = state_->enter(CallKind::broadcast);
  if (rank() == root) {
    auto copy = state_->given(bytes, effect);
    auto transfer = next().start_broadcast(copy, root);
    return std::make_unique<FaultyTransfer>(std::move(transfer), std::move(copy), nullptr);
  }
  auto arrived = [state = state_, bytes, before = copy_of(bytes), effect] {
    state->take(CallKind::broadcast, bytes, before, effect);
  };
  return std::make_unique<FaultyTransfer>(next().start_broadcast(bytes, root), Bytes(), arrived);
}

std::unique_ptr<Communicator> MisbehavingCommunicator::split(int color) {
  state_->enter(CallKind::split);
  return std::unique_ptr<Communicator>(new MisbehavingCommunicator(next().split(color), state_));
}

Outcome MisbehavingCommunicator::agree(Outcome const& mine) {
  state_->enter(CallKind::agree);
  return next().agree(mine);
}

}  // namespace rankslice::test
