#pragma once

#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace rankslice::cli {

/// Touch so many bytes of fresh memory and give them back, as far as the system gives them and an eighth of the host's
/// memory stays free; nothing where a cgroup bounds what this process may have. A virtual machine that has been idle
/// for seconds has left its free memory to its host; to get that back takes ten times as long as a first touch
/// otherwise does, and would be counted against whichever run comes first. `alive` is called in between, and may throw.
/// Local.
void call_in_memory(std::uint64_t bytes, std::function<void()> const& alive);

/// What a process has in memory, less pages of files, which the system takes back where it needs them; 0 where the
/// system does not tell. Local.
[[nodiscard]] std::uint64_t own_memory_of(::pid_t process);

/// Looks at it, again and again, from another thread until it is destroyed.
class MemoryPeak {
 public:
  explicit MemoryPeak(::pid_t process);
  ~MemoryPeak();
  MemoryPeak(MemoryPeak const&) = delete;
  MemoryPeak& operator=(MemoryPeak const&) = delete;

  [[nodiscard]] std::uint64_t bytes() const { return std::max<std::uint64_t>(peak_, own_memory_of(process_)); }

 private:
  ::pid_t process_;
  std::atomic<std::uint64_t> peak_;
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

}  // namespace rankslice::cli
