#include "comm/tcp_frame.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "comm/packing.hpp"
#include "core/literals.hpp"

namespace rankslice {
namespace {

constexpr std::size_t kBufferBytes = 128_KiB;
constexpr std::size_t kSlackBytes = 1_MiB;  // of a writer, before it moves what is left to the front

template <typename Element>
std::vector<std::byte> pack_list(std::vector<Element> const& list) {
  Packer to;
  to.put(std::uint64_t{list.size()});
  for (auto const& element : list) to.put(element);
  return std::move(to.bytes);
}

template <typename Element>
std::vector<Element> unpack_list(std::span<std::byte const> bytes) {
  Unpacker from(bytes);
  std::uint64_t count = 0;
  from.get(count);
  std::vector<Element> list;
  for (std::uint64_t i = 0; i < count; ++i) from.get(list.emplace_back());
  from.expect_end();
  return list;
}

}  // namespace

bool FrameReader::fill(int socket, std::span<std::byte> out, std::size_t& done) {
  while (done < out.size()) {
    if (begin_ == end_) {
      state_ = receive_some(socket, buffer_);
      if (state_.bytes == 0) return false;
      begin_ = 0;
      end_ = state_.bytes;
    }
    auto const size = std::min(end_ - begin_, out.size() - done);
    std::copy_n(buffer_.data() + begin_, size, out.data() + done);
    begin_ += size;
    done += size;
  }
  return true;
}

std::optional<Frame> FrameReader::next(int socket) {
  buffer_.resize(kBufferBytes);
  if (!fill(socket, std::as_writable_bytes(std::span(&frame_.header, 1)), header_done_)) return std::nullopt;
  if (frame_.header.magic != FrameHeader{}.magic || frame_.header.size > most_bytes_) throw NotAFrame{};
  frame_.payload.resize(frame_.header.size);
  if (!fill(socket, frame_.payload, payload_done_)) return std::nullopt;
  header_done_ = 0;
  payload_done_ = 0;
  return std::exchange(frame_, {});
}

void FrameWriter::put(FrameHeader header, std::span<std::byte const> payload) {
  if (payload.size() > std::numeric_limits<std::uint32_t>::max()) throw std::length_error("a frame above 4 GiB");
  header.size = static_cast<std::uint32_t>(payload.size());
  if (begin_ == bytes_.size() || begin_ > kSlackBytes) {
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(begin_));
    begin_ = 0;
  }
  auto const head = std::as_bytes(std::span(&header, 1));
  bytes_.insert(bytes_.end(), head.begin(), head.end());
  bytes_.insert(bytes_.end(), payload.begin(), payload.end());
  put_ += head.size() + payload.size();
}

Moved FrameWriter::flush(int socket) {
  Moved result;
  while (begin_ < bytes_.size()) {
    result = send_some(socket, std::span(bytes_).subspan(begin_));
    if (result.bytes == 0) break;
    begin_ += result.bytes;
    sent_ += result.bytes;
  }
  return result;
}

std::vector<std::byte> pack(TcpHello const& hello) {
  Packer to;
  to.put(hello.version);
  to.put(hello.rank);
  to.put(hello.size);
  to.put(hello.host);
  to.put(hello.token);
  return std::move(to.bytes);
}

TcpHello unpack_hello(std::span<std::byte const> bytes) {
  Unpacker from(bytes);
  TcpHello hello;
  from.get(hello.version);
  if (hello.version != TcpHello{}.version) return hello;  // the rest may be anything
  from.get(hello.rank);
  from.get(hello.size);
  from.get(hello.host);
  from.get(hello.token);
  from.expect_end();
  return hello;
}

std::vector<std::byte> pack(TcpRefusal const& refusal) {
  Packer to;
  to.put(static_cast<std::uint8_t>(refusal.wrong_job));
  to.put(refusal.message);
  return std::move(to.bytes);
}

TcpRefusal unpack_refusal(std::span<std::byte const> bytes) {
  Unpacker from(bytes);
  TcpRefusal refusal;
  std::uint8_t wrong_job = 0;
  from.get(wrong_job);
  refusal.wrong_job = wrong_job != 0;
  from.get(refusal.message);
  from.expect_end();
  return refusal;
}

std::vector<std::byte> pack(TcpFailure const& failure) {
  Packer to;
  to.put(failure.code);
  to.put(failure.message);
  return std::move(to.bytes);
}

TcpFailure unpack_failure(std::span<std::byte const> bytes) {
  Unpacker from(bytes);
  TcpFailure failure;
  from.get(failure.code);
  from.get(failure.message);
  from.expect_end();
  return failure;
}

std::vector<std::byte> pack(std::vector<std::string> const& hosts) { return pack_list(hosts); }
std::vector<std::byte> pack(std::vector<int> const& ranks) { return pack_list(ranks); }
std::vector<std::string> unpack_hosts(std::span<std::byte const> bytes) { return unpack_list<std::string>(bytes); }
std::vector<int> unpack_ranks(std::span<std::byte const> bytes) { return unpack_list<int>(bytes); }

}  // namespace rankslice
