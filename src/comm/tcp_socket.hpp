#pragma once

#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/unique_handle.hpp"

namespace rankslice {

struct SocketTraits {
  using Handle = int;
  static Handle null() noexcept { return -1; }
  static void close(Handle socket) noexcept;
};
/// None of them blocks, and none outlives an exec.
using UniqueSocket = UniqueHandle<SocketTraits>;

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

/// What one call moved. Neither bytes nor an end: there is nothing to move now.
struct Moved {
  std::size_t bytes = 0;
  bool ended = false;  ///< The other side has closed, or the connection broke.
  int error = 0;       ///< Why it broke.
};

/// How a connection ended: "its connection was closed", however abruptly, or why it broke.
[[nodiscard]] std::string describe_end(Moved const& end);

/// Never raises SIGPIPE.
[[nodiscard]] Moved send_some(int socket, std::span<std::byte const> bytes);
[[nodiscard]] Moved receive_some(int socket, std::span<std::byte> bytes);

/// Every address of `host`, which may be one itself. Empty when nobody knows it.
[[nodiscard]] std::vector<SocketAddress> resolve(std::string const& host, std::uint16_t port);
/// The numeric addresses under which other machines may know this one.
[[nodiscard]] std::vector<std::string> own_addresses();

/// Listens on all addresses of this machine, by IPv6 and IPv4; port 0 takes a free one.
/// @throws CommError when the port is in use or may not be had.
[[nodiscard]] UniqueSocket listen_on(std::uint16_t port);
[[nodiscard]] std::uint16_t port_of(int socket);
/// The next connection that has come, if any.
[[nodiscard]] UniqueSocket accept_from(int listener);
/// Not valid when there is no connection within `patience`; then `why` says why.
[[nodiscard]] UniqueSocket connect_to(SocketAddress const& address, std::chrono::milliseconds patience,
                                      std::string& why);
/// Two ends in one process.
[[nodiscard]] std::pair<UniqueSocket, UniqueSocket> socket_pair();

/// Small messages go at once, and a machine that is gone without a word is missed after about `timeout`.
void set_up_connection(int socket, std::chrono::milliseconds timeout);
/// Until there is something to receive (or, with `to_send`, room to send), or the time is over.
void wait_for_socket(int socket, bool to_send, std::chrono::microseconds patience);

}  // namespace rankslice
