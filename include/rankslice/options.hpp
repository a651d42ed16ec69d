#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

namespace rankslice {

struct Progress {
  std::string_view phase;  ///< "load", "verify", "store", "to_hf"
  std::uint64_t done = 0;  ///< Bytes of this rank.
  std::uint64_t total = 0;
};

/// How much is proved; each level includes the ones before it.
enum class VerifyLevel : std::uint8_t {
  off,
  coverage,  ///< Every rank has the same keys, shapes and dtypes; the slices tile each tensor.
  full,      ///< … and what was read is what is held, and is the reference where there is one.
  reread,    ///< … and another rank reads the same when it reads the same bytes again.
};

/// "off", "coverage", "full", "reread"
[[nodiscard]] std::string_view name(VerifyLevel level);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<VerifyLevel> parse_verify_level(std::string_view name);
/// Whether a level needs the digests of what is read while loading.
[[nodiscard]] constexpr bool digests(VerifyLevel level) { return level >= VerifyLevel::full; }

/// What people should hear of while a call goes on.
struct Notice {
  bool warning = false;
  std::string text;
};

/// How the bytes of files get into memory.
enum class ReadBackend : std::uint8_t {
  automatic,  ///< What is in the page cache by `pread`, the rest by what is fastest for its file system.
  pread,      ///< One `pread` after the other, of each thread.
  io_uring,   ///< Many reads at once through the page cache.
  direct,     ///< Many reads at once past the page cache (O_DIRECT), where the file system lets us.
};

/// "auto", "pread", "io_uring", "direct"
[[nodiscard]] std::string_view name(ReadBackend backend);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<ReadBackend> parse_read_backend(std::string_view name);

/// What becomes of the page cache that was filled on the way, which other processes may want for themselves.
enum class PageCache : std::uint8_t { keep, drop };

/// "keep", "drop"
[[nodiscard]] std::string_view name(PageCache cache);
/// The inverse of `name`; nothing for an unknown one.
[[nodiscard]] std::optional<PageCache> parse_page_cache(std::string_view name);

/// Tensor bytes that one thread read of a checkpoint.
struct ReadPart {
  ReadBackend by = ReadBackend::pread;  ///< What was chosen for them; of `by_pread` of them it was no use.
  std::string why;                      ///< "the page cache has all of it"
  std::uint64_t wanted = 0;             ///< Bytes.
  std::uint64_t read = 0;               ///< The same with gaps and edges.
  std::uint64_t by_pread = 0;           ///< Of those wanted, what came by `pread`.
  int threads = 1;                      ///< That read such parts at the same time.
};

struct ReadOptions {
  ReadBackend backend = ReadBackend::automatic;
  PageCache cache = PageCache::keep;
  std::function<void(ReadPart const&)> tell{};  ///< Called on every rank, on the caller's thread, for what was read.
};

/// What every long call accepts.
struct CallOptions {
  ReadOptions reading = ReadOptions();  // gcc 12 takes {} for uninitialised
  /// That move and digest bytes on this rank, the caller's own among them, at most: fewer where the system gives no
  /// more. 0: as many as it has processors, at most 16, and in a collective call its fair share of those that other
  /// ranks of its host have too. A local call knows of no others: where there are some, give it its share.
  int threads = 0;
  std::function<void(Progress const&)>
      progress{};  ///< Called on the caller's thread after every block; what it throws ends the call on every rank.
  std::stop_token stop{};                       ///< When it fires the call throws `Interrupted` on every rank.
  std::function<void(Notice const&)> notice{};  ///< Called on rank 0, on the caller's thread.
};

/// What an output that went on where an earlier run was stopped took over from it.
struct Resumed {
  std::uint64_t segments = 0;  ///< Files, or pieces of one, that were whole, and were read back again.
  std::uint64_t of = 0;        ///< All segments of the output.
  std::uint64_t bytes = 0;     ///< Tensor bytes of those that were taken over.
};

}  // namespace rankslice
