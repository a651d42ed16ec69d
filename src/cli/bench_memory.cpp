#include "cli/bench_memory.hpp"

#include <sys/sysinfo.h>

#include <chrono>
#include <cstddef>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "core/literals.hpp"
#include "io/host_limits.hpp"
#include "io/memory.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kAtOnce = 64_MiB;  // before it is looked again whether there is more
constexpr auto kPage = 4_KiB;     // or larger
constexpr std::chrono::milliseconds kBetweenLooks{5};

bool has_spare_memory() {
  struct ::sysinfo host {};
  return ::sysinfo(&host) == 0 && host.freeram > host.totalram / 8;
}

/// Not where a cgroup bounds it: who goes beyond that is killed.
bool may_take_what_is_free() {
  struct ::sysinfo host {};
  auto const limit = memory_limit();
  return limit && ::sysinfo(&host) == 0 && limit->bytes >= std::uint64_t{host.totalram} * host.mem_unit;
}

}  // namespace

void call_in_memory(std::uint64_t bytes, std::function<void()> const& alive) {
  if (!may_take_what_is_free()) return;
  std::vector<Buffer> touched;
  try {
    for (std::uint64_t taken = 0; taken < bytes && has_spare_memory(); taken += kAtOnce) {
      auto const memory = touched.emplace_back(allocate_host(kAtOnce)).span();
      for (std::uint64_t at = 0; at < kAtOnce; at += kPage) memory[at] = std::byte{1};
      alive();
    }
  } catch (std::bad_alloc const&) {  // there is no more for this process
  }
}

std::uint64_t own_memory_of(::pid_t process) {
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  std::uint64_t kilobytes = 0;
  for (std::string word; status >> word;) {
    std::uint64_t found = 0;
    if ((word == "RssAnon:" || word == "RssShmem:") && status >> found) kilobytes += found;
  }
  return kilobytes * 1024;
}

MemoryPeak::MemoryPeak(::pid_t process) : process_(process), peak_(own_memory_of(process)) {
  thread_ = std::thread([this] {
    while (!ended_) {
      peak_ = bytes();
      std::this_thread::sleep_for(kBetweenLooks);
    }
  });
}

MemoryPeak::~MemoryPeak() {
  ended_ = true;
  thread_.join();
}

}  // namespace rankslice::cli
