#pragma once

#include <chrono>
#include <string>
#include <thread>

#include "comm/tcp_socket.hpp"

namespace rankslice {

struct TcpHubOptions {
  int size = 1;
  std::string token;  ///< What every hello must hold.
  std::string where;  ///< The rendezvous, as people know it.
  std::chrono::milliseconds timeout{};
};

/// Rank 0's thread through which all frames between ranks pass.
///
/// Note [Hub]. It seats each rank that says hello, refuses who is not wanted, and says `start` once all are there, or
/// `failed` with the missing at the deadline. From then on it passes frames on, and tells all when a connection is lost
/// or a rank gives up: the first reason counts. It holds no more for a slow rank than the others have credit for
/// (`TcpGroup`). It ends when rank 0 has left and nobody else is there, or nobody was heard for the timeout, or, where
/// the job has failed, a moment after rank 0 left, so that all may hear why. Nothing but sockets joins it to other
/// threads.
class TcpHub {
 public:
  /// `rank_0` is the hub's end of its connection to rank 0.
  TcpHub(UniqueSocket listener, UniqueSocket rank_0, TcpHubOptions options);

 private:
  std::jthread thread_;
};

}  // namespace rankslice
