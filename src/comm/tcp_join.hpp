#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/tcp_frame.hpp"
#include "comm/tcp_rendezvous.hpp"
#include "comm/tcp_socket.hpp"

namespace rankslice {

/// A rank's connection to the hub, once all ranks are there.
struct TcpConnection {
  UniqueSocket socket;
  FrameReader reader{std::uint32_t{1} << 30};
  FrameWriter writer{};
  std::vector<std::string> hosts{};  ///< By rank.
};

/// Rank 0, which has its end already. @throws CommError as the hub says.
[[nodiscard]] TcpConnection join_hub(UniqueSocket socket, TcpHello const& hello, std::chrono::milliseconds timeout);
/// Any other rank: tries again until rank 0 answers, and then waits for what it says.
/// @throws CommError when this rank is refused, ranks are missing, or nobody answers as rank 0 does.
[[nodiscard]] TcpConnection join_hub(Rendezvous const& rendezvous, TcpHello hello, std::chrono::milliseconds timeout);

}  // namespace rankslice
