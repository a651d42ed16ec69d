#pragma once

#include <cstdint>
#include <string>

namespace rankslice {

/// "ext4", "nfs", "lustre", "tmpfs", … by the `f_type` of `statfs`; "0x…" for one that has no name here.
[[nodiscard]] std::string file_system_name(unsigned long file_system);

/// Whether other hosts may well see the same files in a file system of that name.
[[nodiscard]] bool is_network_file_system(std::string const& name);

struct FileSystemFacts {
  std::string name;
  std::uint64_t free_bytes = 0;  ///< For this user.
};

/// Of the file system in which `path` is. @throws IoError
[[nodiscard]] FileSystemFacts look_at_file_system(std::string const& path);

}  // namespace rankslice
