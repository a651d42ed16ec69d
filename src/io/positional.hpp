#pragma once

#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "core/literals.hpp"
#include "io/file.hpp"

namespace rankslice {

/// Of one `pread` or `pwrite`: Linux moves no more than 0x7ffff000 bytes.
inline constexpr std::uint64_t kMostPerCall = 1_GiB;

/// One `pread` of `size` bytes at `offset`: the bytes it got, or -1 with `errno` set.
using ReadOnce = std::function<::ssize_t(std::byte* out, std::size_t size, std::uint64_t offset)>;

/// Fill `out` by as many calls as it takes; `file` gives its name and size to the errors. @throws as
/// `FileReader::read`.
void read_fully(FileReader const& file, ReadOnce const& read_once, std::span<std::byte> out, std::uint64_t offset);

/// A regular file, opened for reading. @throws as `open_reader`
[[nodiscard]] UniqueFd open_regular(std::string const& path);

/// As `open_reader`, of a file whose tensors will be read as they lie: the system reads further ahead.
[[nodiscard]] std::unique_ptr<FileReader> open_in_order(std::string const& path);

/// Of the file that an open descriptor is of; `path` is for the error. @throws IoError
[[nodiscard]] FileIdentity identity_of(int fd, std::string const& path);

/// A system call that tells errors by a negative result and `errno`, made again when a signal interrupted it.
template <typename Call>
[[nodiscard]] auto uninterrupted(Call const& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// The text of an `errno` value.
[[nodiscard]] std::string reason(int error);

}  // namespace rankslice
