#include "io/direct_reader.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/literals.hpp"
#include "io/direct_file.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

constexpr auto kBlockBytes = 1_MiB;

}  // namespace

void DirectBlock::MemoryTraits::close(Handle memory) noexcept { std::free(memory); }

DirectBlock::DirectBlock() : memory_(static_cast<std::byte*>(std::aligned_alloc(kDirectAlignment, kBlockBytes))) {
  if (!memory_.valid()) throw std::bad_alloc();
}

class DirectReader final : public FileReader {
 public:
  DirectReader(std::string path, UniqueFd fd, DirectBlock& block)
      : path_(std::move(path)), fd_(std::move(fd)), block_(block) {}
  ~DirectReader() override {
    if (block_.owner_ == this) block_.owner_ = nullptr;
  }
  DirectReader(DirectReader const&) = delete;
  DirectReader& operator=(DirectReader const&) = delete;

  [[nodiscard]] std::string const& path() const override { return path_; }
  [[nodiscard]] FileIdentity identity() const override { return identity_of(fd_.get(), path_); }

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

  /// Hold the block of `offset`, or what there is of it before the end of the file.
  bool fill(std::uint64_t offset, std::uint64_t size) {
    auto const begin = offset / kDirectAlignment * kDirectAlignment;
    auto const end =
        std::min((offset + size + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment, begin + kBlockBytes);
    block_.owner_ = nullptr;
    block_.range_ = {begin, begin};
    auto& got = block_.range_.end;
    for (auto at_end = false; got < end && !at_end;) {
      auto* const to = block_.memory_.get() + (got - begin);
      auto const count = ::pread(fd_.get(), to, end - got, static_cast<::off_t>(got));
      if (count < 0) return false;
      got += static_cast<std::uint64_t>(count);
      // From an end that is not aligned nothing can be asked for any more.
      at_end = count == 0 || (got < end && got >= identity().size);
    }
    block_.owner_ = this;
    return true;
  }

  std::string path_;
  UniqueFd fd_;
  DirectBlock& block_;
};

DirectFile open_direct_reader(std::string const& path, DirectBlock& block) {
  auto buffered = open_reader(path);
  auto fd = open_direct(path);
  if (!fd.valid()) return {.reader = std::move(buffered)};
  auto const known = reads_past_page_cache(fd.get());
  auto direct = std::make_unique<DirectReader>(path, std::move(fd), block);
  if (!direct->works()) return {.reader = std::move(buffered)};
  return {.reader = std::move(direct), .past_page_cache = known};
}

}  // namespace rankslice
