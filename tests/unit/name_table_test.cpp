#include "format/name_table.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace rankslice {
namespace {

TEST(NameTable, FindsEachNameAtItsPlace) {
  std::vector<std::string> names;
  for (int i = 0; i < 1000; ++i) names.push_back("layers." + std::to_string(i));
  NameTable const table({names.begin(), names.end()});
  for (std::size_t i = 0; i < names.size(); ++i) EXPECT_EQ(table.find(names[i]), i);
  EXPECT_EQ(table.find("layers"), std::nullopt);
  EXPECT_EQ(table.find("layers.1000"), std::nullopt);
  EXPECT_EQ(table.duplicate(), std::nullopt);
}

TEST(NameTable, FindsNothingInAnEmptyList) {
  NameTable const table({});
  EXPECT_EQ(table.find(""), std::nullopt);
  EXPECT_EQ(table.duplicate(), std::nullopt);
}

TEST(NameTable, NamesTheFirstDuplicateInTheOrderOfTheList) {
  NameTable const table({"d", "a", "b", "c", "a", "b", "a"});
  auto const duplicate = table.duplicate();
  ASSERT_TRUE(duplicate);
  EXPECT_EQ(duplicate->first, 1u);
  EXPECT_EQ(duplicate->second, 4u);
}

}  // namespace
}  // namespace rankslice
