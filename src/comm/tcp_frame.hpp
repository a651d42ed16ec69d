#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "comm/tcp_socket.hpp"

namespace rankslice {

enum class FrameKind : std::uint8_t {
  // Between a rank and the hub.
  hello,    ///< Who wants to come (`TcpHello`).
  welcome,  ///< May stay, and waits for the others.
  refused,  ///< May not (`TcpRefusal`).
  start,    ///< All are there: their hosts, by rank.
  failed,   ///< The end of the job (`TcpFailure`): from a rank to the hub, and from there to all.
  goodbye,  ///< A rank leaves in peace.
  left,     ///< Which ranks have: nothing more comes from them.
  // From a rank to another, through the hub.
  control,  ///< A control message.
  data,     ///< A part of a message.
  credit,   ///< As many more bytes may come (`total`).
};

/// Which messages of a group of ranks a frame belongs to.
enum class Lane : std::uint8_t { transfers, collectives };
inline constexpr std::size_t kLanes = 2;

/// What stands before the payload of every frame, as it lies in memory.
struct FrameHeader {
  std::uint32_t magic = 0x4c534b52;  // "RKSL", and something else where numbers lie the other way round
  FrameKind kind = FrameKind::control;
  Lane lane = Lane::transfers;
  std::uint16_t unused = 0;
  std::int32_t peer = 0;    ///< On the way to the hub the rank that it is for, from there the rank that it is from.
  std::uint32_t size = 0;   ///< Bytes of the payload.
  std::uint64_t group = 0;  ///< Of ranks: a communicator.
  std::uint64_t total = 0;  ///< Bytes of the whole message, of which the payload is a part.
};
static_assert(sizeof(FrameHeader) == 32);

struct Frame {
  FrameHeader header;
  std::vector<std::byte> payload;
};

/// Bytes that are not a frame: a stranger speaks.
struct NotAFrame : CommError {
  NotAFrame() : CommError(ExitCode::bad_launch, "what came over a connection is not rankslice's") {}
};

/// Takes frames from a socket, in whatever pieces their bytes come.
class FrameReader {
 public:
  /// Nobody sends a payload above `most_bytes`.
  explicit FrameReader(std::uint32_t most_bytes) : most_bytes_(most_bytes) {}

  void allow(std::uint32_t most_bytes) { most_bytes_ = most_bytes; }
  /// The next frame, as far as bytes are there. @throws NotAFrame
  [[nodiscard]] std::optional<Frame> next(int socket);
  /// Of the connection, once there are no more frames.
  [[nodiscard]] Moved const& state() const { return state_; }

 private:
  /// Whether `out`, of which `done` bytes are there, is full now.
  [[nodiscard]] bool fill(int socket, std::span<std::byte> out, std::size_t& done);

  std::uint32_t most_bytes_;
  std::vector<std::byte> buffer_;
  std::size_t begin_ = 0;  ///< Of what was received into the buffer and is not taken yet.
  std::size_t end_ = 0;
  Frame frame_;
  std::size_t header_done_ = 0;
  std::size_t payload_done_ = 0;
  Moved state_;
};

/// Frames on their way into a socket, in order.
class FrameWriter {
 public:
  void put(FrameHeader header, std::span<std::byte const> payload);
  /// As much as the socket takes now.
  Moved flush(int socket);

  /// Bytes put in so far, and bytes gone out.
  [[nodiscard]] std::uint64_t put_bytes() const { return put_; }
  [[nodiscard]] std::uint64_t sent_bytes() const { return sent_; }
  [[nodiscard]] std::uint64_t waiting_bytes() const { return put_ - sent_; }

 private:
  std::vector<std::byte> bytes_;
  std::size_t begin_ = 0;  ///< Of what is still to go.
  std::uint64_t put_ = 0;
  std::uint64_t sent_ = 0;
};

struct TcpHello {
  std::uint32_t version = 1;  ///< Of what is said here.
  int rank = 0;
  int size = 0;
  std::string host;
  std::string token;  ///< Of the rendezvous file; else empty.
};

struct TcpRefusal {
  bool wrong_job = false;  ///< The token of another run: the right one may still come.
  std::string message;
};

struct TcpFailure {
  ExitCode code = ExitCode::timeout;
  std::string message;
};

[[nodiscard]] std::vector<std::byte> pack(TcpHello const& hello);
[[nodiscard]] std::vector<std::byte> pack(TcpRefusal const& refusal);
[[nodiscard]] std::vector<std::byte> pack(TcpFailure const& failure);
[[nodiscard]] std::vector<std::byte> pack(std::vector<std::string> const& hosts);
[[nodiscard]] std::vector<std::byte> pack(std::vector<int> const& ranks);
// @throws CommError for bytes that `pack` does not make.
[[nodiscard]] TcpHello unpack_hello(std::span<std::byte const> bytes);
[[nodiscard]] TcpRefusal unpack_refusal(std::span<std::byte const> bytes);
[[nodiscard]] TcpFailure unpack_failure(std::span<std::byte const> bytes);
[[nodiscard]] std::vector<std::string> unpack_hosts(std::span<std::byte const> bytes);
[[nodiscard]] std::vector<int> unpack_ranks(std::span<std::byte const> bytes);

}  // namespace rankslice
