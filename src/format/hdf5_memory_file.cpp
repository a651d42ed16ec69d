#include "format/hdf5_memory_file.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <vector>

#include "rankslice/error.hpp"

namespace rankslice::hdf5 {

namespace {

constexpr std::size_t kCopyBytes = std::size_t{4} << 20;

[[noreturn]] void fail(char const* call) {
  throw IoError(ExitCode::io, fmt::format("memory for a store's metadata: {} failed: {}", call, std::strerror(errno)));
}

}  // namespace

MemoryFile::MemoryFile() : fd_(::memfd_create("rankslice-store", MFD_CLOEXEC)) {
  if (!fd_.valid()) fail("memfd_create");
}

std::string MemoryFile::path() const { return fmt::format("/proc/self/fd/{}", fd_.get()); }

std::uint64_t MemoryFile::size() const {
  auto const end = ::lseek(fd_.get(), 0, SEEK_END);
  if (end < 0) fail("lseek");
  return static_cast<std::uint64_t>(end);
}

void MemoryFile::copy_to(FileWriter& out) const {
  auto const reader = open_reader(path());
  std::vector<std::byte> buffer(kCopyBytes);
  for (auto begin = ::lseek(fd_.get(), 0, SEEK_DATA); begin >= 0;) {
    auto const end = ::lseek(fd_.get(), begin, SEEK_HOLE);
    if (end < 0) fail("lseek");
    for (auto at = static_cast<std::uint64_t>(begin); at < static_cast<std::uint64_t>(end); at += buffer.size()) {
      auto const piece = std::span(buffer).first(std::min(buffer.size(), static_cast<std::uint64_t>(end) - at));
      reader->read(piece, at);
      out.write(piece, at);
    }
    begin = ::lseek(fd_.get(), end, SEEK_DATA);
  }
  if (errno != ENXIO) fail("lseek");  // ENXIO: no more data
}

}  // namespace rankslice::hdf5
