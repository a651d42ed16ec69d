#pragma once

#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rankslice/communicator.hpp"

namespace rankslice::test {

/// Does what another communicator does: the base of those that watch it, or misbehave on purpose.
class ForwardingCommunicator : public Communicator {
 public:
  /// `next` outlives the result.
  explicit ForwardingCommunicator(Communicator& next) : next_(next) {}

  [[nodiscard]] int rank() const override { return next_.rank(); }
  [[nodiscard]] int size() const override { return next_.size(); }
  [[nodiscard]] std::string_view kind() const override { return next_.kind(); }
  [[nodiscard]] std::string const& host(int rank) const override { return next_.host(rank); }
  [[nodiscard]] bool takes_device_memory() const override { return next_.takes_device_memory(); }
  [[nodiscard]] bool can_send() const override { return next_.can_send(); }
  void all_reduce(std::span<std::uint64_t> values, Reduce op) override { next_.all_reduce(values, op); }
  void broadcast(std::span<std::byte> bytes, int root) override { next_.broadcast(bytes, root); }
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override {
    return next_.gather(bytes, root);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    return next_.start_send(bytes, to);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override {
    return next_.start_receive(bytes, from);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override {
    return next_.start_broadcast(bytes, root);
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override { return next_.split(color); }
  void begin_step() override { next_.begin_step(); }
  [[nodiscard]] Outcome agree(Outcome const& mine) override { return next_.agree(mine); }
  void progress() override { next_.progress(); }
  void wait_until(std::function<bool()> const& done) override { next_.wait_until(done); }
  [[noreturn]] void abort(ExitCode code, std::string const& message) override {
    next_.abort(code, message);
    std::terminate();  // does not come here
  }

 protected:
  [[nodiscard]] Communicator& next() { return next_; }

 private:
  Communicator& next_;
};

}  // namespace rankslice::test
