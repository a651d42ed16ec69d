#pragma once

#include <mpi.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/control_channel.hpp"

namespace rankslice {

/// Control messages on one tag of an MPI communicator.
class MpiChannel final : public ControlChannel {
 public:
  /// `comm` is borrowed.
  explicit MpiChannel(MPI_Comm comm);
  /// What is still under way then keeps its memory to the end of the process, as MPI may still touch it.
  ~MpiChannel() override;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  void send(int to, std::vector<std::byte> message) override;
  [[nodiscard]] bool sending(int to) override;
  [[nodiscard]] std::optional<ControlArrival> receive() override;
  [[noreturn]] void abort(ExitCode code, std::string const& message) override;

 private:
  struct Message {
    std::vector<std::byte> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  using Messages = std::deque<Message>;  // of one sender and receiver, in their order
  struct UnderWay {
    std::vector<Messages> out;
    std::vector<Messages> in;
  };

  /// Starts to receive what MPI knows of; a long message comes in parts, and its sender may stop in between.
  void start_receiving();
  [[nodiscard]] bool completed(Message& message) const;

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 0;
  std::size_t incoming_ = 0;
  std::unique_ptr<UnderWay> under_way_;
};

}  // namespace rankslice
