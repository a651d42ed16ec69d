#include "io/file_system.hpp"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

#include "rankslice/error.hpp"

#include "io/positional.hpp"

namespace rankslice {

namespace {

struct KnownFileSystem {
  unsigned long magic;
  std::string_view name;
  bool network = false;
};

// Those without a name in linux/magic.h are of modules outside of the kernel's tree, or forgotten there.
constexpr std::array kKnown{KnownFileSystem{EXT4_SUPER_MAGIC, "ext4"},
                            KnownFileSystem{XFS_SUPER_MAGIC, "xfs"},
                            KnownFileSystem{BTRFS_SUPER_MAGIC, "btrfs"},
                            KnownFileSystem{F2FS_SUPER_MAGIC, "f2fs"},
                            KnownFileSystem{0x2FC12FC1, "zfs"},
                            KnownFileSystem{TMPFS_MAGIC, "tmpfs"},
                            KnownFileSystem{RAMFS_MAGIC, "ramfs"},
                            KnownFileSystem{OVERLAYFS_SUPER_MAGIC, "overlay"},
                            KnownFileSystem{SQUASHFS_MAGIC, "squashfs"},
                            KnownFileSystem{FUSE_SUPER_MAGIC, "fuse", true},
                            KnownFileSystem{NFS_SUPER_MAGIC, "nfs", true},
                            KnownFileSystem{SMB2_SUPER_MAGIC, "smb2", true},
                            KnownFileSystem{CIFS_SUPER_MAGIC, "cifs", true},
                            KnownFileSystem{CEPH_SUPER_MAGIC, "ceph", true},
                            KnownFileSystem{V9FS_MAGIC, "9p", true},
                            KnownFileSystem{0x0BD00BD0, "lustre", true},
                            KnownFileSystem{0x47504653, "gpfs", true},
                            KnownFileSystem{0x19830326, "beegfs", true},
                            KnownFileSystem{0x20030528, "orangefs", true}};

}  // namespace

std::string file_system_name(unsigned long file_system) {
  auto const* const known = std::ranges::find(kKnown, file_system, &KnownFileSystem::magic);
  return known == kKnown.end() ? fmt::format("{:#x}", file_system) : std::string(known->name);
}

bool is_network_file_system(std::string const& name) {
  return std::ranges::any_of(kKnown, [&](auto const& known) { return known.name == name && known.network; });
}

FileSystemFacts look_at_file_system(std::string const& path) {
  struct ::statfs system {};
  if (::statfs(path.c_str(), &system) != 0) {
    auto const code = errno == ENOENT || errno == ENOTDIR ? ExitCode::input_missing : ExitCode::io;
    throw IoError(code, fmt::format("{}: {}", path, reason(errno)), path);
  }
  // What `f_type` has above 32 bits is the sign of a 32-bit magic.
  return {.name = file_system_name(static_cast<unsigned long>(system.f_type) & 0xFFFFFFFFUL),
          .free_bytes = static_cast<std::uint64_t>(system.f_bavail) * static_cast<std::uint64_t>(system.f_frsize)};
}

}  // namespace rankslice
