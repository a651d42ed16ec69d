#pragma once

#include <map>

#include "rankslice/checkpoint.hpp"

#include "io/file.hpp"

namespace rankslice {

/// The files that are being written, opened when first needed. The experts of one layer may lie in several.
class TargetFiles {
 public:
  /// `target` outlives the result.
  explicit TargetFiles(Storage const& target) : target_(target) {}

  [[nodiscard]] FileWriter& at(std::uint32_t index);
  /// Sync and close all of them.
  void finish();

 private:
  Storage const& target_;
  std::map<std::uint32_t, FileWriter> writers_;
};

}  // namespace rankslice
