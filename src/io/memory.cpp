#include "io/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <new>

#include "core/literals.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kHugePage = 2_MiB;
constexpr std::align_val_t kCacheLine{64};

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

// Anonymous memory of `length` bytes, whole pages, that begins at a huge page: mapped larger, then trimmed.
std::byte* map_at_huge_page(std::uint64_t length) {
  auto const mapped_length = length + kHugePage;
  auto* const mapped = ::mmap(nullptr, mapped_length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const first = static_cast<std::byte*>(mapped);
  auto const address = reinterpret_cast<std::uintptr_t>(first);
  auto const before = round_up(address, kHugePage) - address;
  auto const after = mapped_length - before - length;
  if (before > 0) ::munmap(first, before);
  if (after > 0) ::munmap(first + before + length, after);
  ::madvise(first + before, length, MADV_HUGEPAGE);  // a wish: a system without huge pages gives small ones
  return first + before;
}

}  // namespace

Buffer allocate_host(std::uint64_t bytes) {
  if (bytes < kHugePage) {
    auto* const data = static_cast<std::byte*>(::operator new(bytes, kCacheLine));
    return {{data, [](std::byte* memory) { ::operator delete(memory, kCacheLine); }}, bytes};
  }
  if (bytes > std::numeric_limits<std::uint64_t>::max() / 2) throw std::bad_alloc();
  auto const length = round_up(bytes, static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)));
  return {{map_at_huge_page(length), [length](std::byte* memory) { ::munmap(memory, length); }}, bytes};
}

}  // namespace rankslice
