#include "io/direct_reader.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/literals.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

constexpr auto kAlignment = 4_KiB;  // of offsets, sizes and memory: what every common device and file system takes
constexpr auto kBlockBytes = 1_MiB;

/// tmpfs takes the flag, from Linux 6.6 on, and means nothing by it.
bool lives_in_memory(int fd) {
  struct ::statfs system {};
  if (::fstatfs(fd, &system) != 0) return true;
  auto const type = static_cast<unsigned long>(system.f_type);
  return type == TMPFS_MAGIC || type == RAMFS_MAGIC;
}

}  // namespace

void DirectBlock::MemoryTraits::close(Handle memory) noexcept { std::free(memory); }

DirectBlock::DirectBlock() : memory_(static_cast<std::byte*>(std::aligned_alloc(kAlignment, kBlockBytes))) {
  if (!memory_.valid()) throw std::bad_alloc();
}

class DirectReader final : public FileReader {
 public:
  DirectReader(std::unique_ptr<FileReader> buffered, UniqueFd fd, DirectBlock& block)
      : buffered_(std::move(buffered)), fd_(std::move(fd)), block_(block) {}
  ~DirectReader() override {
    if (block_.owner_ == this) block_.owner_ = nullptr;
  }
  DirectReader(DirectReader const&) = delete;
  DirectReader& operator=(DirectReader const&) = delete;

  [[nodiscard]] std::string const& path() const override { return buffered_->path(); }
  [[nodiscard]] FileIdentity identity() const override { return buffered_->identity(); }

  void read(std::span<std::byte> out, std::uint64_t offset) override {
    auto const once = [this](std::byte* to, std::size_t size, std::uint64_t at) { return read_once(to, size, at); };
    read_fully(*this, once, out, offset);
  }

  /// Whether the file system lets the first block be read so. That the file opened is no promise.
  [[nodiscard]] bool works() { return fill(0, 1) || errno == EINTR; }

 private:
  ::ssize_t read_once(std::byte* out, std::size_t size, std::uint64_t offset) {
    auto const& held = block_.range_;
    auto const is_there = block_.owner_ == this && held.begin <= offset && offset < held.end;
    if (!is_there && !fill(offset, size)) return -1;
    if (offset >= held.end) return 0;
    auto const count = std::min<std::uint64_t>(size, held.end - offset);
    std::memcpy(out, block_.memory_.get() + (offset - held.begin), count);
    return static_cast<::ssize_t>(count);
  }

  bool fill(std::uint64_t offset, std::uint64_t size) {
    auto const begin = offset / kAlignment * kAlignment;
    auto const end = (offset + size + kAlignment - 1) / kAlignment * kAlignment;
    block_.owner_ = nullptr;
    auto const got =
        ::pread(fd_.get(), block_.memory_.get(), std::min(kBlockBytes, end - begin), static_cast<::off_t>(begin));
    if (got < 0) return false;
    block_.owner_ = this;
    block_.range_ = {begin, begin + static_cast<std::uint64_t>(got)};
    return true;
  }

  std::unique_ptr<FileReader> buffered_;  // for what is no reading
  UniqueFd fd_;
  DirectBlock& block_;
};

std::unique_ptr<FileReader> open_direct_reader(std::string const& path, DirectBlock& block) {
  auto buffered = open_reader(path);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_DIRECT));
  if (!fd.valid() || lives_in_memory(fd.get())) return nullptr;
  auto reader = std::make_unique<DirectReader>(std::move(buffered), std::move(fd), block);
  if (!reader->works()) return nullptr;
  return reader;
}

}  // namespace rankslice
