#include "target_files.hpp"

namespace rankslice {

FileWriter& TargetFiles::at(std::uint32_t index) {
  auto const open = writers_.find(index);
  if (open != writers_.end()) return open->second;
  return writers_.emplace(index, FileWriter::open(target_.files[index].path)).first->second;
}

void TargetFiles::finish() {
  for (auto& [index, writer] : writers_) {
    writer.sync();
    writer.close();
  }
  writers_.clear();
}

}  // namespace rankslice
