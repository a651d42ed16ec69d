#pragma once

#include <cstdint>
#include <string>

#include "rankslice/communicator.hpp"

namespace rankslice::cli {

/// A new folder below a place that all ranks see. Rank 0 makes it, and removes it with all that is in it at the end.
class ScratchFolder {
 public:
  /// Collective. @throws IoError `cannot_create`, also when the folder is not seen by every rank.
  ScratchFolder(std::string const& place, Communicator& world);
  ~ScratchFolder();
  ScratchFolder(ScratchFolder const&) = delete;
  ScratchFolder& operator=(ScratchFolder const&) = delete;

  [[nodiscard]] std::string const& path() const { return path_; }
  /// Bring the file system to rest, so that nothing that was written before is on its way to the disk. Local.
  void settle() const;

 private:
  std::string path_;
  bool owns_ = false;
};

/// @throws IoError `cannot_create` when the file system of a folder has less room.
void require_free_space(std::string const& folder, std::uint64_t bytes);

/// "ext4": the type of the file system that a path is on; empty when the system does not say.
[[nodiscard]] std::string file_system_of(std::string const& path);

}  // namespace rankslice::cli
