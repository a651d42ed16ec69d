#include "comm/tcp_frame.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace rankslice {
namespace {

constexpr std::uint32_t kMostBytes = 1 << 20;

std::vector<std::byte> some_bytes(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 253);
  return bytes;
}

/// What the writer of `frames` puts on the wire.
std::vector<std::byte> wire_bytes(FrameWriter& writer) {
  auto const [in, out] = socket_pair();
  std::vector<std::byte> wire;
  while (writer.waiting_bytes() > 0) {
    writer.flush(in.get());
    std::vector<std::byte> piece(1 << 16);
    auto const moved = receive_some(out.get(), piece);
    wire.insert(wire.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(moved.bytes));
  }
  return wire;
}

TEST(TcpFrame, AHeaderIs32BytesAndStartsWithFourLetters) {
  FrameWriter writer;
  writer.put({.kind = FrameKind::data, .lane = Lane::collectives, .peer = 3, .group = 5, .total = 9}, some_bytes(2));
  auto const wire = wire_bytes(writer);
  std::vector<int> numbers;
  for (auto const byte : wire) numbers.push_back(static_cast<int>(byte));
  EXPECT_THAT(numbers, testing::ElementsAre('R', 'K', 'S', 'L', 8, 1, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0,  //
                                            5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 7));
}

TEST(TcpFrame, ComesThroughInWhateverPiecesItsBytesCome) {
  for (std::size_t const piece : {1U, 3U, 31U, 32U, 33U, 1000U}) {
    FrameWriter writer;
    std::vector<std::size_t> const sizes{0, 1, 500, 0, 33};
    for (auto const size : sizes) writer.put({.kind = FrameKind::data, .total = size}, some_bytes(size));
    auto const wire = wire_bytes(writer);
    auto const [in, out] = socket_pair();
    FrameReader reader(kMostBytes);
    std::vector<Frame> frames;
    for (std::size_t begin = 0; begin < wire.size(); begin += piece) {
      auto const size = std::min(piece, wire.size() - begin);
      ASSERT_EQ(send_some(in.get(), std::span(wire).subspan(begin, size)).bytes, size);
      while (auto frame = reader.next(out.get())) frames.push_back(std::move(*frame));
      EXPECT_FALSE(reader.state().ended);
    }
    ASSERT_EQ(frames.size(), sizes.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_EQ(frames[i].header.total, sizes[i]);
      EXPECT_EQ(frames[i].payload, some_bytes(sizes[i]));
    }
  }
}

TEST(TcpFrame, WaitsForASocketThatTakesNoMore) {
  auto const [in, out] = socket_pair();
  FrameWriter writer;
  for (int i = 0; i < 8; ++i) writer.put({.kind = FrameKind::data}, some_bytes(kMostBytes));
  FrameReader reader(kMostBytes);
  writer.flush(in.get());
  EXPECT_GT(writer.waiting_bytes(), 0U);
  EXPECT_EQ(writer.waiting_bytes() + writer.sent_bytes(), writer.put_bytes());
  int frames = 0;
  while (frames < 8) {
    EXPECT_FALSE(writer.flush(in.get()).ended);
    while (auto const frame = reader.next(out.get())) {
      ASSERT_EQ(frame->payload, some_bytes(kMostBytes));
      ++frames;
    }
  }
  EXPECT_EQ(writer.waiting_bytes(), 0U);
}

TEST(TcpFrame, TellsThatTheOtherSideHasClosed) {
  auto [in, out] = socket_pair();
  FrameWriter writer;
  writer.put({.kind = FrameKind::data}, some_bytes(9));
  writer.flush(in.get());
  in.reset();
  FrameReader reader(kMostBytes);
  EXPECT_TRUE(reader.next(out.get()).has_value());
  EXPECT_FALSE(reader.next(out.get()).has_value());
  EXPECT_TRUE(reader.state().ended);
  EXPECT_EQ(reader.state().error, 0);
}

TEST(TcpFrame, WritingToAClosedSocketIsNoSignalButAnEnd) {
  auto [in, out] = socket_pair();
  out.reset();
  FrameWriter writer;
  writer.put({.kind = FrameKind::data}, some_bytes(9));
  auto const state = writer.flush(in.get());
  EXPECT_TRUE(state.ended);
  EXPECT_EQ(state.error, EPIPE);
}

TEST(TcpFrame, OtherBytesAreNoFrame) {
  std::string const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
  auto const [in, out] = socket_pair();
  ASSERT_EQ(send_some(in.get(), std::as_bytes(std::span(request))).bytes, request.size());
  FrameReader reader(kMostBytes);
  EXPECT_THROW(std::ignore = reader.next(out.get()), NotAFrame);
}

TEST(TcpFrame, APayloadAboveTheLimitIsRefusedBeforeAnyMemoryIsTakenForIt) {
  FrameHeader header{.kind = FrameKind::hello, .size = 0xffffffffU};
  auto const [in, out] = socket_pair();
  ASSERT_EQ(send_some(in.get(), std::as_bytes(std::span(&header, 1))).bytes, sizeof header);
  FrameReader reader(4096);
  EXPECT_THROW(std::ignore = reader.next(out.get()), NotAFrame);
}

TEST(TcpFrame, WhatIsPackedComesBackAndNothingElseDoes) {
  auto const hello = pack(TcpHello{.rank = 3, .size = 8, .host = "h3", .token = "t"});
  EXPECT_EQ(unpack_hello(hello).rank, 3);
  EXPECT_EQ(unpack_hello(hello).size, 8);
  EXPECT_EQ(unpack_hello(hello).host, "h3");
  EXPECT_EQ(unpack_hello(hello).token, "t");
  for (std::size_t size = 0; size < hello.size(); ++size) {
    EXPECT_THROW(std::ignore = unpack_hello(std::span(hello).first(size)), CommError) << size;
  }
  auto const refusal = unpack_refusal(pack(TcpRefusal{.wrong_job = true, .message = "no"}));
  EXPECT_TRUE(refusal.wrong_job);
  EXPECT_EQ(refusal.message, "no");
  auto const failure = unpack_failure(pack(TcpFailure{ExitCode::io, "disk"}));
  EXPECT_EQ(failure.code, ExitCode::io);
  EXPECT_EQ(failure.message, "disk");
  EXPECT_THAT(unpack_hosts(pack(std::vector<std::string>{"a", "", "c"})), testing::ElementsAre("a", "", "c"));
}

TEST(TcpFrame, AHelloOfAnotherVersionIsReadAsFarAsItsVersion) {
  std::vector<std::byte> bytes(4, std::byte{0x7f});
  EXPECT_EQ(unpack_hello(bytes).version, 0x7f7f7f7fU);
}

}  // namespace
}  // namespace rankslice
