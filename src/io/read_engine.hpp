#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "rankslice/error.hpp"

namespace rankslice {

/// Bytes of an open file, into memory that stays where it is until they are there.
struct EngineRead {
  int fd = -1;
  std::byte* to = nullptr;
  std::uint32_t size = 0;
  std::uint64_t offset = 0;
  std::uint64_t tag = 0;  ///< The caller's name for it.
};

struct EngineCompletion {
  std::uint64_t tag = 0;
  ::ssize_t got = 0;  ///< Bytes, perhaps fewer than were asked for, 0 behind the end of the file; or minus an `errno`.
};

/// Reads that are under way at the same time. What becomes of a read that comes short, or that the system refuses, is
/// the caller's business. One thread uses it. Local.
class ReadEngine {
 public:
  ReadEngine() = default;
  ReadEngine(ReadEngine const&) = delete;
  ReadEngine& operator=(ReadEngine const&) = delete;
  /// Waits for what is under way.
  virtual ~ReadEngine() = default;

  /// No more are under way than it was made for. What it cannot start, `wait` tells.
  virtual void start(EngineRead const& read) = 0;
  /// The next one that has ended, in any order; some are under way. @throws IoError (`io`) when the system takes no
  /// reads any more
  [[nodiscard]] virtual EngineCompletion wait() = 0;
};

/// Makes one read after the other, when it is waited for.
[[nodiscard]] std::unique_ptr<ReadEngine> make_pread_engine();

/// By io_uring: up to `depth` reads under way. `memory` is where most of them go: the kernel keeps it at hand, where
/// the limit of locked memory allows it. @throws IoError (`io`) naming what the system, or this build, lacks
[[nodiscard]] std::unique_ptr<ReadEngine> make_uring_engine(unsigned depth, std::span<std::byte> memory);

/// Why reads by io_uring would fail, as one that is made shows; empty where they would not.
[[nodiscard]] std::string why_no_uring_engine();

/// By another engine, and one after the other from where that one throws IoError on, which `on_end` is told: what was
/// under way is read again.
[[nodiscard]] std::unique_ptr<ReadEngine> make_lasting_engine(std::unique_ptr<ReadEngine> engine,
                                                              std::function<void(IoError const&)> on_end);

}  // namespace rankslice
