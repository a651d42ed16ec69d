#include "comm/control_message.hpp"

#include <gtest/gtest.h>

#include <string>

namespace rankslice {
namespace {

ControlMessage check_in() {
  return {.kind = ControlKind::check_in,
          .agreement = 1ULL << 40,
          .outcome = {ExitCode::io, 4095, std::string("a\0b", 3), "file", "tensor"}};
}

TEST(ControlMessage, SignsOfLifeAreOneByte) {
  for (auto const kind : {ControlKind::working, ControlKind::waiting, ControlKind::watching}) {
    auto const bytes = encode({.kind = kind, .agreement = 3, .outcome = {}});
    EXPECT_EQ(bytes.size(), 1U);
    EXPECT_EQ(decode(bytes).kind, kind);
  }
}

TEST(ControlMessage, CheckInsAndVerdictsCarryTheirOutcome) {
  for (auto const kind : {ControlKind::check_in, ControlKind::verdict}) {
    auto sent = check_in();
    sent.kind = kind;
    auto const received = decode(encode(sent));
    EXPECT_EQ(received.kind, kind);
    EXPECT_EQ(received.agreement, 1ULL << 40);
    EXPECT_EQ(received.outcome.code, ExitCode::io);
    EXPECT_EQ(received.outcome.rank, 4095);
    EXPECT_EQ(received.outcome.message, std::string("a\0b", 3));
    EXPECT_EQ(received.outcome.file, "file");
    EXPECT_EQ(received.outcome.tensor, "tensor");
  }
}

TEST(ControlMessage, RefusesBytesThatEndEarlyOrLate) {
  auto bytes = encode(check_in());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(decode(std::span(bytes).first(size)), CommError) << size << " of " << bytes.size() << " bytes";
  }
  bytes.push_back(std::byte{0});
  EXPECT_THROW(decode(bytes), CommError);
}

}  // namespace
}  // namespace rankslice
