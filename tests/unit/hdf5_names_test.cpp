#include "format/hdf5_names.hpp"

#include <gtest/gtest.h>

#include <set>

#include "rankslice/error.hpp"

namespace rankslice::hdf5 {
namespace {

/// Every string of 1 to 4 of the characters that escaping is about.
std::vector<std::string> tricky_strings() {
  std::vector<std::string> all{""};
  for (std::size_t i = 0; all[i].size() < 4; ++i) {
    for (auto const c : {'/', '%', '.', '2', '5', 'F', 'E', 'f'}) all.push_back(all[i] + c);
  }
  all.erase(all.begin());
  return all;
}

TEST(Hdf5Names, EscapeOnlyWhatHdf5CannotTake) {
  EXPECT_EQ(escape("model.layers.0.mlp.experts.down_projs"), "model.layers.0.mlp.experts.down_projs");
  EXPECT_EQ(escape("a/b"), "a%2Fb");
  EXPECT_EQ(escape("100%"), "100%25");
  EXPECT_EQ(escape("%2F"), "%252F");
  EXPECT_EQ(escape("."), "%2E");
  EXPECT_EQ(escape(".."), "..");
  EXPECT_EQ(escape("./."), ".%2F.");
}

TEST(Hdf5Names, ComeBackFromTheirEscapedForm) {
  for (auto const& name : tricky_strings()) {
    auto const escaped = escape(name);
    EXPECT_EQ(escaped.find('/'), std::string::npos) << name;
    EXPECT_NE(escaped, ".");
    EXPECT_EQ(unescape(escaped), name);
  }
}

TEST(Hdf5Names, HaveOnlyOneEscapedForm) {
  std::set<std::string> names;
  for (auto const& escaped : tricky_strings()) {
    if (auto const name = unescape(escaped)) {
      EXPECT_TRUE(names.insert(*name).second) << escaped;
    }
  }
  for (auto const* none : {"", ".", "a/b", "%", "%2", "%2f", "%2Ea", "%41"}) EXPECT_FALSE(unescape(none)) << none;
}

TEST(Hdf5Names, ThatNoLinkCanHaveAreRefused) {
  EXPECT_THROW((void)escape(""), FormatError);
  EXPECT_THROW((void)escape(std::string_view("a\0b", 3)), FormatError);
}

}  // namespace
}  // namespace rankslice::hdf5
