#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "rankslice/communicator.hpp"

namespace rankslice::test {

/// Bytes that were handed to the calls of a communicator and of those that were split off it.
struct CountedBytes {
  std::uint64_t summed = 0;  ///< All-reduced, by whichever operation.
  std::uint64_t broadcast = 0, gathered = 0, sent = 0;
  std::uint64_t collectives = 0;  ///< All-reduces and broadcasts.
};

/// Another communicator, counting. Both outlive it.
class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(Communicator& inner, CountedBytes& counted) : inner_(&inner), counted_(counted) {}

  [[nodiscard]] int rank() const override { return inner_->rank(); }
  [[nodiscard]] int size() const override { return inner_->size(); }
  [[nodiscard]] std::string_view kind() const override { return inner_->kind(); }
  [[nodiscard]] std::string const& host(int rank) const override { return inner_->host(rank); }
  [[nodiscard]] bool can_send() const override { return inner_->can_send(); }
  void all_reduce(std::span<std::uint64_t> values, Reduce op) override {
    counted_.summed += values.size_bytes();
    ++counted_.collectives;
    inner_->all_reduce(values, op);
  }
  void broadcast(std::span<std::byte> bytes, int root) override {
    counted_.broadcast += bytes.size();
    ++counted_.collectives;
    inner_->broadcast(bytes, root);
  }
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(std::span<std::byte const> bytes, int root) override {
    counted_.gathered += bytes.size();
    return inner_->gather(bytes, root);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_send(std::span<std::byte const> bytes, int to) override {
    counted_.sent += bytes.size();
    return inner_->start_send(bytes, to);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_receive(std::span<std::byte> bytes, int from) override {
    return inner_->start_receive(bytes, from);
  }
  [[nodiscard]] std::unique_ptr<PendingTransfer> start_broadcast(std::span<std::byte> bytes, int root) override {
    counted_.broadcast += bytes.size();
    ++counted_.collectives;
    return inner_->start_broadcast(bytes, root);
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int color) override {
    auto part = std::unique_ptr<CountingCommunicator>(new CountingCommunicator(inner_->split(color), counted_));
    return part;
  }
  void begin_step() override { inner_->begin_step(); }
  [[nodiscard]] Outcome agree(Outcome const& mine) override { return inner_->agree(mine); }
  void progress() override { inner_->progress(); }
  void wait_until(std::function<bool()> const& done) override { inner_->wait_until(done); }
  [[noreturn]] void abort(ExitCode code, std::string const& message) override {
    inner_->abort(code, message);
    std::abort();  // for the compiler, which takes the call for one of this function
  }

 private:
  CountingCommunicator(std::unique_ptr<Communicator> part, CountedBytes& counted)
      : owned_(std::move(part)), inner_(owned_.get()), counted_(counted) {}

  std::unique_ptr<Communicator> owned_;  // of a part
  Communicator* inner_;
  CountedBytes& counted_;
};

}  // namespace rankslice::test
