#pragma once

#include <map>
#include <vector>

#include "rankslice/checkpoint.hpp"

#include "io/file.hpp"

namespace rankslice {

/// The files that are being written, opened when first needed. The experts of one layer may lie in several.
class TargetFiles {
 public:
  /// `target` outlives the result.
  explicit TargetFiles(Storage const& target) : target_(target) {}

  [[nodiscard]] FileWriter& at(std::uint32_t index);
  /// What was written since this was called last, on its way to the disk.
  [[nodiscard]] std::vector<Extent> start_write_back();
  void finish_write_back(std::vector<Extent> const& extents);
  void drop_cached(std::vector<Extent> const& extents) noexcept;
  void sync();
  void close();

 private:
  Storage const& target_;
  std::map<std::uint32_t, FileWriter> writers_;
};

}  // namespace rankslice
