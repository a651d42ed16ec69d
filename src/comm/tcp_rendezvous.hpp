#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/tcp_socket.hpp"

namespace rankslice {

/// What `TcpOptions::rendezvous` says: either a file, or a host and a port.
struct Rendezvous {
  std::string text;  ///< As it was given.
  std::string file;
  std::string host;
  std::uint16_t port = 0;
};

/// @throws UsageError
[[nodiscard]] Rendezvous parse_rendezvous(std::string const& text);

/// Where rank 0 listens, as the file of a rendezvous tells it.
struct MeetingPlace {
  std::string token;  ///< Of this run: an older file names another, or another run's port.
  std::string host;
  std::uint16_t port = 0;
  std::vector<std::string> addresses{};  ///< Of the host, should its name mean nothing elsewhere.
};

/// That of this process, at `port`, with a new token.
[[nodiscard]] MeetingPlace make_meeting_place(std::uint16_t port);
/// Nothing when there is no file, or not a whole one.
[[nodiscard]] std::optional<MeetingPlace> read_meeting_place(std::string const& file);

/// The file of a rendezvous, there from the first moment as a whole, and as long as this lives.
class PublishedPlace {
 public:
  /// Replaces what an earlier run left. @throws IoError
  PublishedPlace(std::string file, MeetingPlace const& place);
  ~PublishedPlace();
  PublishedPlace(PublishedPlace const&) = delete;
  PublishedPlace& operator=(PublishedPlace const&) = delete;

 private:
  std::string file_;
  std::string token_;
};

/// What to try, in order, to reach rank 0.
[[nodiscard]] std::vector<SocketAddress> addresses_of(Rendezvous const& rendezvous,
                                                      std::optional<MeetingPlace> const& place);

}  // namespace rankslice
