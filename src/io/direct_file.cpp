#include "io/direct_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "io/file_system.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

constexpr unsigned long kLustreMagic = 0x0BD00BD0;  // not in linux/magic.h
constexpr std::array<unsigned long, 2> kLocal{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC};
constexpr std::array<unsigned long, 2> kRemote{NFS_SUPER_MAGIC, kLustreMagic};
constexpr std::array<unsigned long, 2> kMemory{TMPFS_MAGIC, RAMFS_MAGIC};

unsigned long file_system_of(int fd) {
  struct ::statfs system {};
  return ::fstatfs(fd, &system) == 0 ? static_cast<unsigned long>(system.f_type) : 0;
}

bool is_local(unsigned long file_system) { return std::ranges::find(kLocal, file_system) != kLocal.end(); }

/// Why a file differs from others of its file system.
std::string why_excepted([[maybe_unused]] int fd) {
#ifdef STATX_DIOALIGN  // from Linux 6.1 on
  struct ::statx found {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) != 0 || (found.stx_mask & STATX_DIOALIGN) == 0) return {};
  auto const alignment = std::max(found.stx_dio_offset_align, found.stx_dio_mem_align);
  if (alignment == 0) return "its file system reads it through the page cache";
  if (alignment > kDirectAlignment) return fmt::format("it is read so only at multiples of {} bytes", alignment);
#endif
  return {};
}

/// Read one unit as it will be read.
std::string why_unreadable(int fd) {
  alignas(kDirectAlignment) std::array<std::byte, kDirectAlignment> unit;
  auto const got = uninterrupted([&] { return ::pread(fd, unit.data(), unit.size(), 0); });
  return got < 0 ? reason(errno) : std::string();
}

}  // namespace

bool keeps_its_word(unsigned long file_system) {
  return is_local(file_system) || std::ranges::find(kRemote, file_system) != kRemote.end();
}

bool reads_past_page_cache(int fd) { return keeps_its_word(file_system_of(fd)) && why_excepted(fd).empty(); }

DirectAnswer try_direct(std::string const& path) {
  auto const fd = open_direct(path);
  if (!fd.valid()) return {.why_refused = reason(errno)};
  auto const file_system = file_system_of(fd.get());
  auto const name = file_system_name(file_system);
  if (std::ranges::find(kMemory, file_system) != kMemory.end()) {
    return {.why_refused = "it lies in memory, in a " + name};
  }
  auto why = why_excepted(fd.get());
  if (why.empty() && !is_local(file_system)) why = why_unreadable(fd.get());
  return {.why_refused = std::move(why),
          .doubt = keeps_its_word(file_system) ? "" : name + " may read through the page cache all the same",
          .on_local_disk = is_local(file_system)};
}

UniqueFd open_direct(std::string const& path) {
  auto const flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_DIRECT;
  UniqueFd fd(uninterrupted([&] { return ::open(path.c_str(), flags); }));
  if (fd.valid()) ::fcntl(fd.get(), F_SETFL, O_DIRECT);  // as `open_regular`
  return fd;
}

}  // namespace rankslice
