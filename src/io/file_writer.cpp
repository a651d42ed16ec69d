#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "rankslice/error.hpp"

#include "core/literals.hpp"
#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kWriteBackEvery = 32_MiB;

std::string free_space(int fd) {
  struct ::statvfs system {};
  if (::fstatvfs(fd, &system) != 0) return "an unknown number of";
  return std::to_string(std::uint64_t{system.f_bavail} * system.f_frsize);
}

bool is_unsupported(int error) { return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL; }

int reserve_blocks(int fd, std::uint64_t size) {
  return uninterrupted([&] { return ::fallocate(fd, 0, 0, static_cast<::off_t>(size)); }) == 0 ? 0 : errno;
}

// Pages that are already on their way make the final fsync short.
void start_write_back(std::string const& path, int fd) {
  // Not every file system knows it, and `sync` does without; but an error of the writing itself must not be lost here.
  if (::sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE) == 0 || is_unsupported(errno)) return;
  throw IoError(ExitCode::io, fmt::format("{}: write-back failed: {}", path, reason(errno)), path);
}

}  // namespace

FileWriter FileWriter::create(std::string const& path) {
  auto const flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  UniqueFd fd(uninterrupted([&] { return ::open(path.c_str(), flags, 0666); }));
  if (!fd.valid()) {
    throw IoError(ExitCode::cannot_create, fmt::format("{}: cannot be created: {}", path, reason(errno)), path);
  }
  return {path, std::move(fd)};
}

FileWriter FileWriter::open(std::string const& path) {
  auto const flags = O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  UniqueFd fd(uninterrupted([&] { return ::open(path.c_str(), flags); }));
  if (!fd.valid()) {
    throw IoError(ExitCode::io, fmt::format("{}: cannot be opened for writing: {}", path, reason(errno)), path);
  }
  return {path, std::move(fd)};
}

void FileWriter::allocate(std::uint64_t size) {
  auto const available = free_space(fd_.get());  // before: some systems keep what they could get of a failed request
  auto error = size == 0 ? 0 : reserve_blocks(fd_.get(), size);
  if (error == 0 || is_unsupported(error)) {
    error = uninterrupted([&] { return ::ftruncate(fd_.get(), static_cast<::off_t>(size)); }) == 0 ? 0 : errno;
  }
  if (error == 0) return;
  throw IoError(ExitCode::cannot_create,
                fmt::format("{}: {} bytes cannot be reserved, the file system has {} bytes free: {}", path_, size,
                            available, reason(error)),
                path_);
}

void FileWriter::write(std::span<std::byte const> bytes, std::uint64_t offset) {
  auto const begin = offset;
  auto const end = offset + bytes.size();
  while (!bytes.empty()) {
    auto const size = std::min(bytes.size(), kMostPerCall);
    auto const put =
        uninterrupted([&] { return ::pwrite(fd_.get(), bytes.data(), size, static_cast<::off_t>(offset)); });
    if (put < 0) {
      auto const why = reason(errno);
      throw IoError(ExitCode::io,
                    fmt::format("{}: writing bytes [{}, {}) failed at {}: {}", path_, begin, end, offset, why), path_);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
    unsynced_ += static_cast<std::uint64_t>(put);
  }
  if (unsynced_ < kWriteBackEvery) return;
  start_write_back(path_, fd_.get());
  unsynced_ = 0;
}

void FileWriter::sync() {
  if (uninterrupted([&] { return ::fsync(fd_.get()); }) == 0) return;
  auto const error = errno;
  fd_.reset();  // the kernel has dropped the pages it could not write: a second fsync would lie
  throw IoError(ExitCode::io, fmt::format("{}: fsync failed: {}", path_, reason(error)), path_);
}

void FileWriter::close() {
  if (::close(fd_.release()) == 0 || errno == EINTR) return;  // Linux has closed it, and a second try is another file's
  throw IoError(ExitCode::io, fmt::format("{}: close failed: {}", path_, reason(errno)), path_);
}

}  // namespace rankslice
