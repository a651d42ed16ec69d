#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "rankslice/error.hpp"

#include "io/file.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

std::int64_t nanoseconds(::timespec const& time) { return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

struct ::stat status(std::string const& path, int fd) {
  struct ::stat found {};
  if (::fstat(fd, &found) != 0) throw IoError(ExitCode::io, fmt::format("{}: fstat: {}", path, reason(errno)), path);
  return found;
}

[[noreturn]] void fail_open(std::string const& path, int error) {
  if (error == ENXIO) throw FormatError(fmt::format("{}: is not a regular file", path), path);  // a socket
  auto const code = error == ENOENT || error == ENOTDIR ? ExitCode::input_missing : ExitCode::io;
  throw IoError(code, fmt::format("{}: cannot be opened for reading: {}", path, reason(error)), path);
}

class PosixReader final : public FileReader {
 public:
  PosixReader(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  [[nodiscard]] std::string const& path() const override { return path_; }

  [[nodiscard]] FileIdentity identity() const override { return identity_of(fd_.get(), path_); }

  void read(std::span<std::byte> out, std::uint64_t offset) override {
    auto const read_once = [fd = fd_.get()](std::byte* to, std::size_t size, std::uint64_t at) {
      return ::pread(fd, to, size, static_cast<::off_t>(at));
    };
    read_fully(*this, read_once, out, offset);
  }

 private:
  std::string path_;
  UniqueFd fd_;
};

}  // namespace

FileIdentity identity_of(int fd, std::string const& path) {
  auto const now = status(path, fd);
  return {.device = now.st_dev,
          .inode = now.st_ino,
          .size = static_cast<std::uint64_t>(now.st_size),
          .modified_ns = nanoseconds(now.st_mtim),
          .changed_ns = nanoseconds(now.st_ctim)};
}

void FdTraits::close(Handle fd) noexcept { ::close(fd); }

UniqueFd open_regular(std::string const& path) {
  // Without O_NONBLOCK the open of a FIFO waits for its writer. Regular files do not know the flag, but io_uring before
  // Linux 5.15 leaves out what would wait for the disk.
  auto const flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  UniqueFd fd(uninterrupted([&] { return ::open(path.c_str(), flags); }));
  if (!fd.valid()) fail_open(path, errno);
  if (!S_ISREG(status(path, fd.get()).st_mode)) {
    throw FormatError(fmt::format("{}: is not a regular file", path), path);
  }
  ::fcntl(fd.get(), F_SETFL, 0);
  return fd;
}

std::unique_ptr<FileReader> open_reader(std::string const& path) {
  return std::make_unique<PosixReader>(path, open_regular(path));
}

std::unique_ptr<FileReader> open_in_order(std::string const& path) {
  auto fd = open_regular(path);
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  return std::make_unique<PosixReader>(path, std::move(fd));
}

std::vector<std::byte> read_file(std::string const& path, std::uint64_t limit) {
  auto const reader = open_reader(path);
  auto const size = reader->identity().size;
  if (size > limit) {
    throw FormatError(fmt::format("{}: has {} bytes, expected at most {}", path, size, limit), path);
  }
  std::vector<std::byte> bytes(size);
  reader->read(bytes, 0);
  return bytes;
}

}  // namespace rankslice
