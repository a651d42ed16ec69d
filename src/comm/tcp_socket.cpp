#include "comm/tcp_socket.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <system_error>

#include "rankslice/error.hpp"

#include "core/host_name.hpp"

namespace rankslice {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kBacklog = 1024;  // ranks that come at the same time
constexpr int kKeepaliveProbes = 3;

std::string reason_of(int error) { return std::generic_category().message(error); }

void set_option(int socket, int level, int option, int value) {
  // Each of them makes things better, none is needed.
  static_cast<void>(::setsockopt(socket, level, option, &value, sizeof value));
}

sockaddr const* generic(SocketAddress const& address) {
  return static_cast<sockaddr const*>(static_cast<void const*>(&address.storage));
}

/// Of a result below 0.
Moved not_moved() {
  if (errno == EAGAIN || errno == EWOULDBLOCK) return {};
  return {.bytes = 0, .ended = true, .error = errno};
}

template <typename Call>
auto retry_interrupted(Call const& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

UniqueSocket open_socket(int family) {
  return UniqueSocket(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
}

/// 0, or an errno.
int bind_and_listen(int socket, SocketAddress const& address) {
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);  // connections of an earlier run may linger
  if (::bind(socket, generic(address), address.size) != 0) return errno;
  return ::listen(socket, kBacklog) == 0 ? 0 : errno;
}

SocketAddress any_address(int family, std::uint16_t port) {
  SocketAddress address;
  if (family == AF_INET6) {
    auto* const v6 = static_cast<sockaddr_in6*>(static_cast<void*>(&address.storage));
    *v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_flowinfo = 0, .sin6_addr = {}, .sin6_scope_id = 0};
    address.size = sizeof *v6;
  } else {
    auto* const v4 = static_cast<sockaddr_in*>(static_cast<void*>(&address.storage));
    *v4 = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {}, .sin_zero = {}};
    address.size = sizeof *v4;
  }
  return address;
}

[[noreturn]] void refuse_port(std::uint16_t port, int error) {
  if (error == EADDRINUSE) {
    throw CommError(ExitCode::bad_launch,
                    fmt::format("port {} of {} is in use: rankslice needs one of its own, not the one that "
                                "torchrun's store holds (MASTER_PORT)",
                                port, host_name()));
  }
  throw CommError(ExitCode::bad_launch,
                  fmt::format("cannot listen on port {} of {}: {}", port, host_name(), reason_of(error)));
}

}  // namespace

void SocketTraits::close(Handle socket) noexcept { ::close(socket); }

std::string describe_end(Moved const& end) {
  // Who dies with bytes unread resets the connection.
  bool const closed = end.error == 0 || end.error == ECONNRESET || end.error == EPIPE;
  return closed ? "its connection was closed" : reason_of(end.error);
}

Moved send_some(int socket, std::span<std::byte const> bytes) {
  auto const sent = retry_interrupted([&] { return ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL); });
  return sent < 0 ? not_moved() : Moved{.bytes = static_cast<std::size_t>(sent)};
}

Moved receive_some(int socket, std::span<std::byte> bytes) {
  auto const received = retry_interrupted([&] { return ::recv(socket, bytes.data(), bytes.size(), 0); });
  return received < 0 ? not_moved() : Moved{.bytes = static_cast<std::size_t>(received), .ended = received == 0};
}

std::vector<SocketAddress> resolve(std::string const& host, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return {};
  std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> const owned(found, &::freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (auto const* each = found; each != nullptr; each = each->ai_next) {
    auto& address = addresses.emplace_back();
    address.size = each->ai_addrlen;
    auto const* const from = static_cast<std::byte const*>(static_cast<void const*>(each->ai_addr));
    std::copy_n(from, each->ai_addrlen, static_cast<std::byte*>(static_cast<void*>(&address.storage)));
  }
  return addresses;
}

std::vector<std::string> own_addresses() {
  ifaddrs* found = nullptr;
  if (::getifaddrs(&found) != 0) return {};
  std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> const owned(found, &::freeifaddrs);
  std::vector<std::string> addresses;
  for (auto const* each = found; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || (each->ifa_flags & IFF_UP) == 0 || (each->ifa_flags & IFF_LOOPBACK) != 0) continue;
    auto const family = each->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    std::array<char, NI_MAXHOST> text{};
    auto const size = static_cast<socklen_t>(family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    if (::getnameinfo(each->ifa_addr, size, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0) continue;
    std::string address = text.data();
    if (address.find('%') == std::string::npos) addresses.push_back(std::move(address));  // not of one link only
  }
  return addresses;
}

UniqueSocket listen_on(std::uint16_t port) {
  auto error = EAFNOSUPPORT;
  for (auto const family : {AF_INET6, AF_INET}) {
    auto socket = open_socket(family);
    if (!socket.valid()) continue;
    if (family == AF_INET6) set_option(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
    error = bind_and_listen(socket.get(), any_address(family, port));
    if (error == 0) return socket;
    if (error == EADDRINUSE) break;
  }
  refuse_port(port, error);
}

std::uint16_t port_of(int socket) {
  SocketAddress address;
  address.size = sizeof address.storage;
  auto* const storage = static_cast<sockaddr*>(static_cast<void*>(&address.storage));
  if (::getsockname(socket, storage, &address.size) != 0) return 0;
  if (storage->sa_family == AF_INET6) return ntohs(static_cast<sockaddr_in6*>(static_cast<void*>(storage))->sin6_port);
  return ntohs(static_cast<sockaddr_in*>(static_cast<void*>(storage))->sin_port);
}

UniqueSocket accept_from(int listener) {
  return UniqueSocket(
      retry_interrupted([&] { return ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); }));
}

UniqueSocket connect_to(SocketAddress const& address, milliseconds patience, std::string& why) {
  auto socket = open_socket(address.storage.ss_family);
  if (!socket.valid()) {
    why = reason_of(errno);
    return {};
  }
  // An interrupted connect goes on by itself, as one that would block does.
  if (::connect(socket.get(), generic(address), address.size) == 0) return socket;
  auto error = errno;
  if (error == EINPROGRESS || error == EINTR) {
    wait_for_socket(socket.get(), true, patience);
    pollfd poll_for{.fd = socket.get(), .events = POLLOUT, .revents = 0};
    socklen_t size = sizeof error;
    error = ETIMEDOUT;
    if (::poll(&poll_for, 1, 0) == 1)
      static_cast<void>(::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size));
  }
  if (error == 0) return socket;
  why = reason_of(error);
  return {};
}

std::pair<UniqueSocket, UniqueSocket> socket_pair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    throw CommError(ExitCode::bad_launch, fmt::format("cannot make a pair of sockets: {}", reason_of(errno)));
  }
  return {UniqueSocket(ends[0]), UniqueSocket(ends[1])};
}

void set_up_connection(int socket, milliseconds timeout) {
  auto const idle = std::clamp(std::chrono::duration_cast<seconds>(timeout / 2), seconds(1), seconds(60));
  auto const between = std::max(seconds(1), idle / kKeepaliveProbes);
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, static_cast<int>(idle.count()));
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, static_cast<int>(between.count()));
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes);
  // Probes are for connections on which nothing is under way; this is for the others.
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT,
             static_cast<int>(std::clamp<std::int64_t>(timeout.count(), 1000, 1 << 30)));
}

void wait_for_socket(int socket, bool to_send, std::chrono::microseconds patience) {
  auto const end = std::chrono::steady_clock::now() + patience;
  pollfd poll_for{.fd = socket, .events = static_cast<short>(to_send ? POLLIN | POLLOUT : POLLIN), .revents = 0};
  while (true) {
    auto const left = std::max(std::chrono::nanoseconds(0), end - std::chrono::steady_clock::now());
    auto const whole = std::chrono::floor<seconds>(left);
    timespec const time{.tv_sec = whole.count(), .tv_nsec = (left - whole).count()};
    if (::ppoll(&poll_for, 1, &time, nullptr) >= 0 || errno != EINTR) return;
  }
}

}  // namespace rankslice
