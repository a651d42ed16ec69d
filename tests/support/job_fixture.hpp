#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rankslice/communicator.hpp"

#include "support/temp_dir.hpp"

namespace rankslice::test {

/// Tests that all ranks run together on one small synthetic checkpoint (E = 7: uneven over 2, 3 and 4 ranks), which
/// rank 0 makes once in a folder that it removes at the end.
class JobTest : public testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();

  [[nodiscard]] static Communicator& world();
  /// A path in the common folder, the same on all ranks.
  [[nodiscard]] static std::string path(std::string const& name);
  [[nodiscard]] static std::string checkpoint() { return path("checkpoint"); }
};

/// Every regular file below a folder: relative name -> bytes.
[[nodiscard]] std::map<std::string, std::vector<char>> files_below(std::filesystem::path const& folder);

}  // namespace rankslice::test
