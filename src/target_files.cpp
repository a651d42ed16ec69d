#include "target_files.hpp"

namespace rankslice {

FileWriter& TargetFiles::at(std::uint32_t index) {
  auto const open = writers_.find(index);
  if (open != writers_.end()) return open->second;
  return writers_.emplace(index, FileWriter::open(target_.files[index].path)).first->second;
}

std::vector<Extent> TargetFiles::start_write_back() {
  std::vector<Extent> started;
  for (auto& [index, writer] : writers_) {
    auto const range = writer.start_write_back();
    if (!range.empty()) started.push_back({.file = index, .bytes = range});
  }
  return started;
}

void TargetFiles::finish_write_back(std::vector<Extent> const& extents) {
  for (auto const& [file, bytes] : extents) writers_.at(file).finish_write_back(bytes);
}

void TargetFiles::drop_cached(std::vector<Extent> const& extents) noexcept {
  for (auto const& [file, bytes] : extents) writers_.at(file).drop_cached(bytes);
}

void TargetFiles::sync() {
  for (auto& [index, writer] : writers_) writer.sync();
}

void TargetFiles::close() {
  for (auto& [index, writer] : writers_) writer.close();
  writers_.clear();
}

}  // namespace rankslice
