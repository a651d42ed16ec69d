#include "format/quote.hpp"

#include <gtest/gtest.h>

#include <string>

namespace rankslice {
namespace {

using namespace std::string_literals;

TEST(Quote, KeepsPlainTextInAnyScript) { EXPECT_EQ(in_quotes("lm_head \xc3\xa9"), "\"lm_head \xc3\xa9\""); }

TEST(Quote, EscapesWhatWouldBreakALineOrATerminal) {
  EXPECT_EQ(in_quotes("a\n\x1b[2J\x7f\0b"s), R"("a\x0a\x1b[2J\x7f\x00b")");
}

TEST(Quote, EscapesBytesThatAreNoUtf8) { EXPECT_EQ(in_quotes("a\xff"), R"("a\xff")"); }

TEST(Quote, ShortensLongText) {
  EXPECT_EQ(in_quotes(std::string(1'000'000, 'x')), '"' + std::string(200, 'x') + "…\"");
}

TEST(Quote, ShortensTextBetweenCharacters) {
  EXPECT_EQ(shortened("ab\xc3\xa9", 4), "ab\xc3\xa9");
  EXPECT_EQ(shortened("ab\xc3\xa9", 3), "ab…");
  EXPECT_EQ(shortened("abcd", 3), "abc…");
}

}  // namespace
}  // namespace rankslice
