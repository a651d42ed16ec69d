#include "io/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "core/literals.hpp"
#include "io/huge_pages.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kOwnPages = 128_KiB;  // the unused end of a last page is 3 % of a tensor at most then
constexpr std::align_val_t kCacheLine{64};

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

std::uint64_t whole_pages(std::uint64_t bytes) {
  static auto const page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return round_up(bytes, page);
}

// Anonymous memory of `length` bytes, whole pages, that begins at a huge page where one has room in it: mapped larger,
// then trimmed.
std::byte* map_at_huge_page(std::uint64_t length, HugePages pages) {
  static auto const huge_page = huge_page_bytes();
  auto const mapped_length = length < huge_page ? length : length + huge_page;
  auto* const mapped = ::mmap(nullptr, mapped_length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const first = static_cast<std::byte*>(mapped);
  auto const address = reinterpret_cast<std::uintptr_t>(first);
  auto const before = length < huge_page ? 0 : round_up(address, huge_page) - address;
  auto const after = mapped_length - before - length;
  if (before > 0) ::munmap(first, before);
  if (after > 0) ::munmap(first + before + length, after);
  // A wish: a system without huge pages gives small ones.
  ::madvise(first + before, length, pages == HugePages::off ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
  return first + before;
}

Buffer from_heap(std::uint64_t bytes) {
  auto* const data = static_cast<std::byte*>(::operator new(bytes, kCacheLine));
  return {{data, [](std::byte* memory) { ::operator delete(memory, kCacheLine); }}, bytes};
}

/// A huge page of which a part is unmapped stays whole, and used up, until all of it is: one that is given back in part
/// is taken apart at once. Unmapping fails where it would make one mapping more than a process may have.
void give_back(std::byte* memory, std::uint64_t length) {
  ::madvise(memory, length, MADV_FREE);
  if (::munmap(memory, length) != 0) ::madvise(memory, length, MADV_DONTNEED);
}

/// Of which tensors get one part after the other, that each go back to the system by themselves.
class Mapping {
 public:
  Mapping(std::uint64_t length, HugePages pages) : rest_(map_at_huge_page(length, pages)), length_(length) {}
  Mapping(Mapping const&) = delete;
  Mapping& operator=(Mapping const&) = delete;
  ~Mapping() {
    if (length_ > 0) give_back(rest_, length_);
  }

  [[nodiscard]] Buffer cut(std::uint64_t bytes) {
    auto const length = whole_pages(bytes);
    auto* const data = std::exchange(rest_, rest_ + length);
    length_ -= length;
    return {{data, [length](std::byte* memory) { give_back(memory, length); }}, bytes};
  }

 private:
  std::byte* rest_;
  std::uint64_t length_;
};

std::uint64_t bytes_to_map(std::span<std::uint64_t const> sizes) {
  std::uint64_t total = 0;
  for (auto const bytes : sizes) {
    if (bytes > std::numeric_limits<std::uint64_t>::max() / 4 - total) throw std::bad_alloc();
    if (bytes >= kOwnPages) total += whole_pages(bytes);
  }
  return total;
}

}  // namespace

std::vector<Buffer> allocate_host(std::span<std::uint64_t const> sizes, HugePages pages) {
  if (pages == HugePages::on) require_huge_pages();
  auto const total = bytes_to_map(sizes);
  std::optional<Mapping> mapping;
  if (total > 0) mapping.emplace(total, pages);
  std::vector<Buffer> buffers;
  buffers.reserve(sizes.size());
  for (auto const bytes : sizes) buffers.push_back(bytes < kOwnPages ? from_heap(bytes) : mapping->cut(bytes));
  return buffers;
}

Buffer allocate_host(std::uint64_t bytes, HugePages pages) {
  return allocate_host(std::span(&bytes, 1), pages).front();
}

}  // namespace rankslice
