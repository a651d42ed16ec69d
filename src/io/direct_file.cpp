#include "io/direct_file.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>

#include "io/positional.hpp"

namespace rankslice {

namespace {

constexpr unsigned long kLustreMagic = 0x0BD00BD0;  // not in linux/magic.h
constexpr std::array<unsigned long, 2> kLocal{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC};
constexpr std::array<unsigned long, 2> kRemote{NFS_SUPER_MAGIC, kLustreMagic};

unsigned long file_system_of(int fd) {
  struct ::statfs system {};
  return ::fstatfs(fd, &system) == 0 ? static_cast<unsigned long>(system.f_type) : 0;
}

bool is_local(unsigned long file_system) { return std::ranges::find(kLocal, file_system) != kLocal.end(); }

/// A file can differ from others of its file system.
bool is_excepted([[maybe_unused]] int fd) {
#ifdef STATX_DIOALIGN  // from Linux 6.1 on
  struct ::statx found {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) != 0) return false;
  auto const alignment = found.stx_dio_offset_align;
  return (found.stx_mask & STATX_DIOALIGN) != 0 && (alignment == 0 || alignment > kDirectAlignment);
#else
  return false;
#endif
}

}  // namespace

bool keeps_its_word(unsigned long file_system) {
  return is_local(file_system) || std::ranges::find(kRemote, file_system) != kRemote.end();
}

bool reads_past_page_cache(int fd) { return keeps_its_word(file_system_of(fd)) && !is_excepted(fd); }

bool is_on_local_disk(int fd) { return is_local(file_system_of(fd)); }

UniqueFd open_direct(std::string const& path) {
  auto const flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_DIRECT;
  return UniqueFd(uninterrupted([&] { return ::open(path.c_str(), flags); }));
}

}  // namespace rankslice
