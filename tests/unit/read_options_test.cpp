#include <gtest/gtest.h>

#include <array>

#include "rankslice/load.hpp"
#include "rankslice/options.hpp"

namespace rankslice {
namespace {

TEST(ReadOptions, HaveTheNamesOfTheCommandLine) {
  constexpr std::array kBackends{ReadBackend::automatic, ReadBackend::pread, ReadBackend::io_uring,
                                 ReadBackend::direct};
  constexpr std::array<std::string_view, 4> kNames{"auto", "pread", "io_uring", "direct"};
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    EXPECT_EQ(name(kBackends[i]), kNames[i]);
    EXPECT_EQ(parse_read_backend(kNames[i]), kBackends[i]);
  }
  EXPECT_EQ(parse_page_cache(name(PageCache::keep)), PageCache::keep);
  EXPECT_EQ(parse_page_cache("drop"), PageCache::drop);
  EXPECT_EQ(parse_huge_pages("auto"), HugePages::automatic);
  EXPECT_EQ(parse_huge_pages("on"), HugePages::on);
  EXPECT_EQ(parse_huge_pages(name(HugePages::off)), HugePages::off);
}

TEST(ReadOptions, OtherNamesAreNone) {
  EXPECT_FALSE(parse_read_backend("mmap"));
  EXPECT_FALSE(parse_page_cache("automatic"));
  EXPECT_FALSE(parse_huge_pages(""));
}

}  // namespace
}  // namespace rankslice
