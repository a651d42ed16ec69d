#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/state_dict.hpp"

#include "io/file.hpp"
#include "io/read_engine.hpp"

namespace rankslice::cli {

/// Reads that a ReadEngine of `PlainReader::read_by` has under way.
inline constexpr unsigned kReadsUnderWay = 16;

// What the machine can do with the same bytes: nothing in here knows of tensors.

/// Called with every block; may throw.
using Alive = std::function<void()>;

/// Fresh private memory on 4 KiB pages, not touched yet, whatever the system prefers. @throws std::bad_alloc
[[nodiscard]] Buffer allocate_small_pages(std::uint64_t bytes);

/// Fresh private memory on 2 MiB pages, not touched yet, where the system has them. @throws std::bad_alloc
[[nodiscard]] Buffer allocate_huge_pages(std::uint64_t bytes);

/// Plain `pread` of byte ranges, by some threads at once.
class PlainReader {
 public:
  enum class Way : std::uint8_t {
    buffered,
    direct,  ///< Past the page cache, in aligned blocks.
  };

  /// Opens the files that have extents. @throws IoError, also where a file system does not read directly
  PlainReader(Storage const& storage, std::vector<Extent> const& extents, int threads, Way way = Way::buffered);

  /// Of the extents.
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// What `read` needs: with `direct` some more than `bytes()`.
  [[nodiscard]] std::uint64_t memory_bytes() const { return memory_bytes_; }
  /// One extent after the other into `out`, which begins on a page.
  void read(std::span<std::byte> out, Alive const& alive) const;
  /// Into the same small memory again and again: the page cache has them then, if it has the room.
  void warm_page_cache(Alive const& alive) const;
  /// Through an engine, `kReadsUnderWay` blocks at once for each thread: into `out` as `read` does, or into the same
  /// small memory.
  void read_by(std::unique_ptr<ReadEngine> (*make_engine)(std::span<std::byte>), Alive const& alive,
               std::span<std::byte> out = {}) const;
  /// Let the page cache of this host forget the files, as far as it does that.
  void drop_page_cache() const;
  /// Of the whole files what it has all the same; nothing where the system does not tell.
  [[nodiscard]] std::optional<std::uint64_t> left_in_page_cache() const;

 private:
  struct Block {
    std::uint32_t file = 0;
    Range bytes;
    std::uint64_t place = 0;  // in the memory of `read`
  };
  void read_block(Block const& block, std::byte* to) const;
  template <typename Place>
  void for_each_block(Alive const& alive, Place const& place) const;

  int threads_;
  std::vector<Block> blocks_;
  std::vector<std::string> paths_;
  std::vector<UniqueFd> files_;
  std::uint64_t bytes_ = 0, memory_bytes_ = 0;
};

/// Read memory once, as fast as one thread can without leaving anything behind.
void read_memory(std::span<std::byte const> bytes);

/// The same of many pieces of it, by some threads at once.
void read_memory(std::vector<std::span<std::byte const>> const& blocks, int threads, Alive const& alive);

/// The memory of a state dict in blocks of at most 1 MiB.
[[nodiscard]] std::vector<std::span<std::byte const>> blocks_of(StateDict const& held);

/// Copy so many bytes of `blocks`, from the first one again when they are used up, into a few MiB that are used again.
void copy_blocks(std::vector<std::span<std::byte const>> const& blocks, std::uint64_t bytes, Alive const& alive);

/// Plain `pwrite` into files that exist at their full size, all ranks together: of each file each rank writes one
/// stretch.
class PlainWriter {
 public:
  struct File {
    std::string path;
    std::uint64_t size = 0;
  };
  enum class Sync { none, every_file };

  PlainWriter(std::vector<File> files, int rank, int ranks) : files_(std::move(files)), rank_(rank), ranks_(ranks) {}

  /// Make the files, with their blocks. On one rank. @throws IoError
  void create_files() const;
  /// The share of this rank, in bytes.
  [[nodiscard]] std::uint64_t bytes() const;
  /// Write it from `blocks`, one after the other, from the first one again when they are used up; close the files.
  /// @throws IoError
  void write(std::vector<std::span<std::byte const>> const& blocks, Sync sync, Alive const& alive) const;
  /// On one rank.
  void remove_files() const;

 private:
  [[nodiscard]] Range share_of(File const& file) const;

  std::vector<File> files_;
  int rank_, ranks_;
};

}  // namespace rankslice::cli
