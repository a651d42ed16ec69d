#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "rankslice/communicator.hpp"

namespace rankslice {

struct TcpOptions {
  int rank = 0;
  int size = 1;
  /// Where the ranks meet. "HOST:PORT" (an IPv6 address in brackets): rank 0 listens on that port of its machine, which
  /// the others know as HOST. The port is rankslice's own, not the one that torchrun's store holds. "file:PATH", on a
  /// file system that all ranks see: rank 0 takes a free port and says there where it listens.
  std::string rendezvous;
  /// How long to wait for all ranks to come, and how long a rank may go without progress before the others give up.
  std::chrono::milliseconds timeout = std::chrono::seconds(300);
};

/// A communicator over TCP, for ranks that have no MPI. All bytes pass through a thread of rank 0: it is for control
/// and small data, and to start something faster (NCCL) with. On a network that is trusted: nothing is encrypted, and
/// with HOST:PORT whoever reaches the port may come as a rank. Collective. One thread per rank uses the result and what
/// is split from it.
///
/// No call ends the process: a rank that does not answer in time, or whose connection is lost (this is known at once),
/// makes every wait of every rank throw CommError (75) with the same message, and so does `abort`. Each rank ends its
/// communicators after its last call that others need; a wait for one who has left fails at once. The last communicator
/// of rank 0 waits until the others have left, at most for the timeout.
/// @throws UsageError for options that make no sense; CommError 78 when this rank is not wanted (twice the same rank,
/// another size, another version) or the port is in use, 75 when ranks are missing at the deadline, naming them;
/// IoError when the file cannot be written.
[[nodiscard]] std::unique_ptr<Communicator> make_tcp_communicator(TcpOptions const& options);

}  // namespace rankslice
