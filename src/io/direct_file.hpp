#pragma once

#include <cstdint>
#include <string>

#include "core/literals.hpp"
#include "io/file.hpp"

namespace rankslice {

/// Of offsets, sizes and memory of reads past the page cache: what every common device and file system takes.
inline constexpr auto kDirectAlignment = 4_KiB;

/// Whether a file system, by the `f_type` of `statfs`, reads past the page cache of this host where it accepts to.
/// Others may accept it and read through the cache all the same.
[[nodiscard]] bool keeps_its_word(unsigned long file_system);

/// Whether that of an open file does, and with this file too: ext4 reads through the cache what it journals or
/// encrypts.
[[nodiscard]] bool reads_past_page_cache(int fd);

/// What becomes of reads past the page cache.
struct DirectAnswer {
  std::string why_refused{};   ///< Empty where they are made.
  std::string doubt{};         ///< Why they may go through the page cache all the same; empty where they do not.
  bool on_local_disk = false;  ///< The bytes come from a disk of this host, by a file system that is known to.
};

/// Ask the file system of a file. Of one that is no known local one the first bytes are read so: that a file opens is
/// no promise. Local.
[[nodiscard]] DirectAnswer try_direct(std::string const& path);

/// Open for reading with O_DIRECT; invalid, with `errno` set, where that is refused.
[[nodiscard]] UniqueFd open_direct(std::string const& path);

}  // namespace rankslice
