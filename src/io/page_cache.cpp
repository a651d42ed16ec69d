#include "io/page_cache.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "core/literals.hpp"
#include "io/positional.hpp"

namespace rankslice {

namespace {

constexpr auto kLeaf = 1_MiB;
constexpr auto kLookedAt = 1_GiB;               // at once: mincore(2) wants a byte for each page
constexpr auto kDropBytes = 8_MiB;              // of what is forgotten at once
constexpr std::uint64_t kLargestFolio = 2_MiB;  // what the page cache keeps, and forgets, as one

#ifndef SYS_cachestat
constexpr long kCachestat = 451;  // the same on every machine, from Linux 6.5 on
#else
constexpr long kCachestat = SYS_cachestat;
#endif

std::uint64_t page_bytes() {
  static auto const bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

std::uint64_t pages_of(Range bytes) {
  return (bytes.end + page_bytes() - 1) / page_bytes() - bytes.begin / page_bytes();
}

/// As cachestat(2) has them.
struct CacheRange {
  std::uint64_t offset, length;
};
struct CacheCounts {
  std::uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

std::optional<std::uint64_t> cached_by_cachestat(int fd, Range bytes) {
  CacheRange const range{bytes.begin, bytes.size()};
  CacheCounts counts{};
  if (::syscall(kCachestat, fd, &range, &counts, 0) != 0) return std::nullopt;
  return counts.cached;
}

/// By a mapping that is never touched, and could not be.
std::optional<std::uint64_t> cached_by_mincore(int fd, Range bytes) {
  auto const begin = bytes.begin / page_bytes() * page_bytes();
  auto const length = pages_of(bytes) * page_bytes();
  auto* const mapped = ::mmap(nullptr, length, PROT_NONE, MAP_SHARED, fd, static_cast<::off_t>(begin));
  if (mapped == MAP_FAILED) return std::nullopt;
  std::vector<unsigned char> there(pages_of(bytes));
  auto const result = ::mincore(mapped, length, there.data());
  ::munmap(mapped, length);
  if (result != 0) return std::nullopt;
  return std::ranges::count_if(there, [](unsigned char page) { return (page & 1U) != 0; });
}

/// Whether the kernel counts us among the owners of a file: only they may have O_NOATIME.
bool counts_as_owner(int fd) {
  auto const flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NOATIME) != 0) return false;
  ::fcntl(fd, F_SETFL, flags);
  return true;
}

/// mincore(2) answers only who owns a file or may write to it. Whom else it tells that all pages are there.
bool mincore_is_true(int fd) {
  return counts_as_owner(fd) ||
         ::faccessat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(fd)).c_str(), W_OK, AT_EACCESS) == 0;
}

/// How many pages of a range are in the page cache.
std::optional<std::uint64_t> cached_pages(int fd, Range bytes) {
  auto const cached = cached_by_cachestat(fd, bytes);
  if (cached || !mincore_is_true(fd)) return cached;
  return cached_by_mincore(fd, bytes);
}

void append(std::vector<Range>& parts, Range part) {
  if (!parts.empty() && parts.back().end == part.begin) {
    parts.back().end = part.end;
  } else {
    parts.push_back(part);
  }
}

/// False: the system does not tell.
bool add_cold_parts(int fd, Range bytes, std::vector<Range>& cold) {
  auto const cached = cached_pages(fd, bytes);
  if (!cached) return false;
  auto const pages = pages_of(bytes);
  if (*cached >= pages) return true;
  if (*cached == 0) {
    append(cold, bytes);
    return true;
  }
  if (bytes.size() <= kLeaf) {
    if (*cached * 4 < pages * 3) append(cold, bytes);
    return true;
  }
  auto const middle = bytes.begin + (bytes.size() / 2 + kLeaf - 1) / kLeaf * kLeaf;
  return add_cold_parts(fd, {bytes.begin, middle}, cold) &&
         (middle >= bytes.end || add_cold_parts(fd, {middle, bytes.end}, cold));
}

}  // namespace

std::optional<std::vector<Range>> cold_parts(int fd, std::vector<Range> const& runs) {
  std::vector<Range> cold;
  for (auto const& run : runs) {
    for (auto begin = run.begin; begin < run.end; begin += kLookedAt) {
      if (!add_cold_parts(fd, {begin, std::min(run.end, begin + kLookedAt)}, cold)) return std::nullopt;
    }
  }
  return cold;
}

std::optional<std::uint64_t> bytes_in_page_cache(int fd, Range bytes) {
  if (bytes.empty()) return 0;
  auto const pages = cached_pages(fd, bytes);
  if (!pages) return std::nullopt;
  return std::min(*pages * page_bytes(), bytes.size());
}

DroppingReader::DroppingReader(std::unique_ptr<FileReader> file, std::vector<Range> cold)
    : file_(std::move(file)), cold_(std::move(cold)) {}

/// The edges once more: the system reads on behind them, and keeps and forgets memory in large parts, of which one may
/// lie on both sides.
DroppingReader::~DroppingReader() {
  std::vector<Range> parts{behind_};
  edges_.push_back(behind_.end);
  for (auto const edge : edges_) parts.push_back({edge - std::min(edge, kLargestFolio), edge + kLargestFolio});
  drop(parts);
}

void DroppingReader::read(std::span<std::byte> out, std::uint64_t offset) {
  file_->read(out, offset);
  if (offset != behind_.end) {
    drop({behind_});
    edges_.insert(edges_.end(), {behind_.end, offset});
    behind_ = {offset, offset};
  }
  behind_.end = offset + out.size();
  if (behind_.size() < kDropBytes) return;
  drop({behind_});
  behind_.begin = behind_.end - kLargestFolio;
}

/// By a descriptor for this only: a checkpoint may have more files than a process may have open twice.
void DroppingReader::drop(std::vector<Range> const& parts) const {
  auto const flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  UniqueFd const fd(uninterrupted([&] { return ::open(path().c_str(), flags); }));
  if (!fd.valid()) return;  // to forget is a wish
  for (auto const& part : parts) drop(fd.get(), part);
}

void DroppingReader::drop(int fd, Range bytes) const {
  for (auto part = std::ranges::upper_bound(cold_, bytes.begin, {}, &Range::end);
       part != cold_.end() && part->begin < bytes.end; ++part) {
    auto const shared = intersection(*part, bytes);
    auto const begin = (shared.begin + page_bytes() - 1) / page_bytes() * page_bytes();
    auto const end = shared.end / page_bytes() * page_bytes();
    if (begin >= end) continue;
    ::posix_fadvise(fd, static_cast<::off_t>(begin), static_cast<::off_t>(end - begin), POSIX_FADV_DONTNEED);
  }
}

}  // namespace rankslice
