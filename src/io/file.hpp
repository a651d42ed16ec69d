#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/unique_handle.hpp"

namespace rankslice {

struct FdTraits {
  using Handle = int;
  static Handle null() noexcept { return -1; }
  static void close(Handle fd) noexcept;
};
using UniqueFd = UniqueHandle<FdTraits>;

/// What tells a file from another one that took its name, or from itself after a change.
struct FileIdentity {
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t modified_ns = 0, changed_ns = 0;
  auto operator<=>(FileIdentity const&) const = default;
};

/// Positional reads from one file. Local.
class FileReader {
 public:
  virtual ~FileReader() = default;
  [[nodiscard]] virtual std::string const& path() const = 0;
  [[nodiscard]] virtual FileIdentity identity() const = 0;  ///< As the file is now, for the open descriptor.
  /// Fill `out` from the bytes at `offset`; short reads and EINTR are continued.
  /// @throws IoError (`io`) when the system reports an error, FormatError when the file ends before the last byte:
  /// the message names path, offset, wanted and found bytes.
  virtual void read(std::span<std::byte> out, std::uint64_t offset) = 0;
};

/// A regular file, by `pread`. Never mapped: a file that shrinks is an error, not a signal.
/// @throws IoError: `input_missing` when it is not there, `io` otherwise (permission, …); FormatError for anything that
/// is not a regular file (directory, FIFO, device).
[[nodiscard]] std::unique_ptr<FileReader> open_reader(std::string const& path);

/// The whole of a small file. @throws as `open_reader`; FormatError when it is larger than `limit`.
[[nodiscard]] std::vector<std::byte> read_file(std::string const& path, std::uint64_t limit);

/// Positional writes to one file, synced before it counts. Local.
class FileWriter {
 public:
  /// Create a file that is not there yet. @throws IoError `cannot_create`.
  [[nodiscard]] static FileWriter create(std::string const& path);
  /// Open one that is. @throws IoError.
  [[nodiscard]] static FileWriter open(std::string const& path);

  /// Give it its final size, with its blocks where the file system can promise them, so that a full disk shows now.
  /// @throws IoError `cannot_create` on ENOSPC.
  void allocate(std::uint64_t size);
  /// Short writes and EINTR are continued. Write-back starts as it goes, so that `sync` has little left to do.
  /// @throws IoError naming path, offset, bytes and reason.
  void write(std::span<std::byte const> bytes, std::uint64_t offset);
  /// Data and metadata on stable storage. @throws IoError; never repeated after an error.
  void sync();
  /// Close, and see the error that some file systems report only then. @throws IoError
  void close();
  [[nodiscard]] std::string const& path() const { return path_; }

 private:
  FileWriter(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  std::string path_;
  UniqueFd fd_;
  std::uint64_t unsynced_ = 0;
};

}  // namespace rankslice
