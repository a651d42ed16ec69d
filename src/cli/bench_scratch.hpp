#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rankslice::cli {

/// A new folder below a place, removed at the end with all that is in it. One rank makes it for all. Local.
class ScratchFolder {
 public:
  /// @throws IoError `cannot_create`
  explicit ScratchFolder(std::string const& place);
  ~ScratchFolder();
  ScratchFolder(ScratchFolder const&) = delete;
  ScratchFolder& operator=(ScratchFolder const&) = delete;

  [[nodiscard]] std::string const& path() const { return path_; }
  /// Those of other runs, which go on or were killed.
  [[nodiscard]] static std::vector<std::string> others_in(std::string const& place);

 private:
  std::string path_;
};

/// Bring the file system of a folder to rest: nothing that was written before is on its way to the disk any more.
/// @throws IoError
void settle_file_system(std::string const& folder);

/// @throws IoError `cannot_create` when the file system of a folder has less room.
void require_free_space(std::string const& folder, std::uint64_t bytes);

/// "ext4": the type of the file system that a path is on; empty when the system does not say.
[[nodiscard]] std::string file_system_of(std::string const& path);

}  // namespace rankslice::cli
