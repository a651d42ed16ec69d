#include "cli/bench_limits.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <tuple>

#include "rankslice/error.hpp"
#include "rankslice/mesh.hpp"

#include "core/literals.hpp"
#include "core/threads.hpp"
#include "io/memory.hpp"
#include "io/page_cache.hpp"
#include "io/positional.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kBlockBytes = 1_MiB;
constexpr auto kPageBytes = 4_KiB;  // what O_DIRECT takes on every common device

void write_fully(int fd, std::string const& path, std::span<std::byte const> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    auto const put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<::off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw IoError(ExitCode::io, fmt::format("{}: writing failed: {}", path, reason(errno)), path);
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
}

UniqueFd open_file(std::string const& path, int flags) {
  UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags));
  if (file.valid()) return file;
  throw IoError(ExitCode::io, fmt::format("{}: cannot be opened: {}", path, reason(errno)), path);
}

Range whole_pages(Range bytes) {
  return {bytes.begin / kPageBytes * kPageBytes, (bytes.end + kPageBytes - 1) / kPageBytes * kPageBytes};
}

}  // namespace

Buffer allocate_small_pages(std::uint64_t bytes) {
  auto const length = std::max<std::uint64_t>(bytes, 1);
  auto* const memory = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  ::madvise(memory, length, MADV_NOHUGEPAGE);  // fails only where there are no huge pages at all
  return {{static_cast<std::byte*>(memory), [length](std::byte* mapped) { ::munmap(mapped, length); }}, bytes};
}

Buffer allocate_huge_pages(std::uint64_t bytes) {
  return allocate_host(std::max<std::uint64_t>(bytes, 2_MiB));  // smaller memory may have been used before
}

PlainReader::PlainReader(Storage const& storage, std::vector<Extent> const& extents, int threads, Way way)
    : threads_(threads), paths_(storage.files.size()), files_(storage.files.size()) {
  auto in_order = extents;
  if (way == Way::direct)
    std::ranges::sort(in_order, {}, [](Extent const& e) { return std::tuple(e.file, e.bytes.begin); });
  for (auto const& [file, bytes] : in_order) {
    if (!files_[file].valid()) {
      paths_[file] = storage.files[file].path;
      files_[file] = open_file(paths_[file], way == Way::direct ? O_DIRECT : 0);
    }
    bytes_ += bytes.size();
    auto from = way == Way::direct ? whole_pages(bytes) : bytes;
    auto const goes_on = way == Way::direct && !blocks_.empty() && blocks_.back().file == file;
    if (goes_on) from.begin = std::max(from.begin, blocks_.back().bytes.end);  // a page that two extents share
    for (auto begin = from.begin; begin < from.end; begin += kBlockBytes) {
      auto const end = std::min(begin + kBlockBytes, from.end);
      blocks_.push_back({.file = file, .bytes = {begin, end}, .place = memory_bytes_});
      memory_bytes_ += end - begin;
    }
  }
  if (way == Way::direct && !blocks_.empty()) {  // that a file opens so is no promise
    auto const memory = allocate_small_pages(kBlockBytes);
    read_block(blocks_.front(), memory.data.get());
  }
}

void PlainReader::read_block(Block const& block, std::byte* to) const {
  for (auto [begin, end] = block.bytes; begin < end;) {
    auto const got = ::pread(files_[block.file].get(), to, end - begin, static_cast<::off_t>(begin));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      auto const& path = paths_[block.file];
      throw IoError(ExitCode::io, fmt::format("{}: reading failed: {}", path, reason(errno)), path);
    }
    if (got == 0) return;  // the last page of a file is rarely whole
    to += got;
    begin += static_cast<std::uint64_t>(got);
  }
}

template <typename Place>
void PlainReader::for_each_block(Alive const& alive, Place const& place) const {
  auto const threads = static_cast<std::uint64_t>(threads_);
  in_threads(
      threads_, [&](std::uint64_t) { alive(); },
      [&](int thread, BlockDone const& done) {
        auto const mine = balanced_part(blocks_.size(), threads, static_cast<std::uint64_t>(thread));
        for (auto i = mine.begin; i < mine.end; ++i) {
          read_block(blocks_[i], place(thread, blocks_[i]));
          done(blocks_[i].bytes.size());
        }
      });
}

void PlainReader::read(std::span<std::byte> out, Alive const& alive) const {
  for_each_block(alive, [&](int, Block const& block) { return out.data() + block.place; });
}

void PlainReader::warm_page_cache(Alive const& alive) const {
  std::vector<std::vector<std::byte>> memory(static_cast<std::size_t>(threads_), std::vector<std::byte>(kBlockBytes));
  for_each_block(alive, [&](int thread, Block const&) { return memory[static_cast<std::size_t>(thread)].data(); });
}

void PlainReader::read_by(std::unique_ptr<ReadEngine> (*make_engine)(std::span<std::byte>), Alive const& alive,
                          std::span<std::byte> out) const {
  auto const share = [&](int thread, BlockDone const& done) {
    auto const memory = allocate_small_pages(out.empty() ? kReadsUnderWay * kBlockBytes : 0);
    auto const engine = make_engine(out.empty() ? memory.span() : std::span<std::byte>{});
    auto const mine =
        balanced_part(blocks_.size(), static_cast<std::uint64_t>(threads_), static_cast<std::uint64_t>(thread));
    std::array<std::uint64_t, kReadsUnderWay> block_in{};  // by place in `memory`
    auto next = mine.begin;
    auto const to = [&](std::uint64_t place) {
      return out.empty() ? memory.data.get() + place * kBlockBytes : out.data() + blocks_[block_in[place]].place;
    };
    auto const start_in = [&](std::uint64_t place) {
      block_in[place] = next;
      auto const& block = blocks_[next++];
      engine->start({.fd = files_[block.file].get(),
                     .to = to(place),
                     .size = static_cast<std::uint32_t>(block.bytes.size()),
                     .offset = block.bytes.begin,
                     .tag = place});
    };
    while (next < mine.end && next - mine.begin < kReadsUnderWay) start_in(next - mine.begin);
    for (auto left = mine.size(); left > 0; --left) {
      auto const [place, got] = engine->wait();
      auto const& block = blocks_[block_in[place]];
      auto const whole = got == static_cast<::ssize_t>(block.bytes.size());
      if (!whole) read_block(block, to(place));  // or it tells what is wrong
      done(block.bytes.size());
      if (next < mine.end) start_in(place);
    }
  };
  in_threads(
      threads_, [&](std::uint64_t) { alive(); }, share);
}

void PlainReader::drop_page_cache() const {
  for (auto const& file : files_) {
    if (!file.valid()) continue;
    ::fdatasync(file.get());  // what is not written yet would stay
    ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

std::optional<std::uint64_t> PlainReader::left_in_page_cache() const {
  std::uint64_t bytes = 0;
  for (auto const& file : files_) {
    struct ::stat facts {};
    if (!file.valid() || ::fstat(file.get(), &facts) != 0) continue;
    auto const cached = bytes_in_page_cache(file.get(), {0, static_cast<std::uint64_t>(facts.st_size)});
    if (!cached) return std::nullopt;
    bytes += *cached;
  }
  return bytes;
}

void read_memory(std::span<std::byte const> bytes) {
  typedef std::uint64_t Words __attribute__((vector_size(64)));
  Words sums[4] = {};
  std::size_t at = 0;
  for (; at + sizeof(sums) <= bytes.size(); at += sizeof(sums)) {
    Words words[4];
    std::memcpy(words, bytes.data() + at, sizeof(words));
    for (std::size_t i = 0; i < 4; ++i) sums[i] += words[i];
  }
  for (; at < bytes.size(); ++at) sums[0][0] += std::to_integer<std::uint64_t>(bytes[at]);
  sums[0] += sums[1] + sums[2] + sums[3];
  std::uint64_t total = 0;
  for (std::size_t lane = 0; lane < sizeof(Words) / sizeof(std::uint64_t); ++lane) total += sums[0][lane];
  std::uint64_t volatile used = total;  // or the compiler leaves the reading out
  static_cast<void>(used);
}

void read_memory(std::vector<std::span<std::byte const>> const& blocks, int threads, Alive const& alive) {
  in_threads(
      threads, [&](std::uint64_t) { alive(); },
      [&](int thread, BlockDone const& done) {
        auto const mine =
            balanced_part(blocks.size(), static_cast<std::uint64_t>(threads), static_cast<std::uint64_t>(thread));
        for (auto i = mine.begin; i < mine.end; ++i) {
          read_memory(blocks[i]);
          done(blocks[i].size());
        }
      });
}

std::vector<std::span<std::byte const>> blocks_of(StateDict const& held) {
  std::vector<std::span<std::byte const>> blocks;
  for (auto const& [fqn, tensor] : held.tensors) {
    for (std::span<std::byte const> rest = tensor.data.span(); !rest.empty();) {
      auto const size = std::min<std::size_t>(rest.size(), kBlockBytes);
      blocks.push_back(rest.first(size));
      rest = rest.subspan(size);
    }
  }
  return blocks;
}

void copy_blocks(std::vector<std::span<std::byte const>> const& blocks, std::uint64_t bytes, Alive const& alive) {
  if (blocks.empty()) return;
  std::vector<std::byte> memory(8_MiB);
  std::uint64_t at = 0;
  for (std::size_t i = 0; bytes > 0; i = (i + 1) % blocks.size()) {
    auto const block = blocks[i].first(std::min<std::uint64_t>(blocks[i].size(), bytes));
    if (at + block.size() > memory.size()) at = 0;
    std::memcpy(memory.data() + at, block.data(), block.size());
    at += block.size();
    bytes -= block.size();
    alive();
  }
}

Range PlainWriter::share_of(File const& file) const {
  return balanced_part(file.size, static_cast<std::uint64_t>(ranks_), static_cast<std::uint64_t>(rank_));
}

std::uint64_t PlainWriter::bytes() const {
  std::uint64_t sum = 0;
  for (auto const& file : files_) sum += share_of(file).size();
  return sum;
}

void PlainWriter::create_files() const {
  for (auto const& file : files_) {
    auto made = FileWriter::create(file.path);
    made.allocate(file.size);
    made.close();
  }
}

void PlainWriter::write(std::vector<std::span<std::byte const>> const& blocks, Sync sync, Alive const& alive) const {
  std::size_t next = 0;
  for (auto const& file : files_) {
    UniqueFd fd(::open(file.path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd.valid()) {
      throw IoError(ExitCode::io, fmt::format("{}: cannot be opened: {}", file.path, reason(errno)), file.path);
    }
    for (auto share = share_of(file); !share.empty();) {
      auto const& block = blocks[next++ % blocks.size()];
      auto const size = std::min<std::uint64_t>(block.size(), share.size());
      write_fully(fd.get(), file.path, block.first(size), share.begin);
      share.begin += size;
      alive();
    }
    if ((sync == Sync::every_file && ::fsync(fd.get()) != 0) || ::close(fd.release()) != 0) {
      throw IoError(ExitCode::io, fmt::format("{}: fsync or close failed: {}", file.path, reason(errno)), file.path);
    }
  }
}

void PlainWriter::remove_files() const {
  for (auto const& file : files_) std::filesystem::remove(file.path);
}

}  // namespace rankslice::cli
