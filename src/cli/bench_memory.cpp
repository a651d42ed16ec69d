#include "cli/bench_memory.hpp"

#include <sys/sysinfo.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <string>

#include "core/literals.hpp"
#include "io/memory.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kTouched = 2_MiB;  // before it is looked again whether there is more
constexpr auto kPage = 4_KiB;     // or larger
constexpr std::chrono::milliseconds kBetweenLooks{5};

bool has_spare_memory() {
  struct ::sysinfo host {};
  return ::sysinfo(&host) == 0 && host.freeram > host.totalram / 8;
}

}  // namespace

void call_in_memory(std::uint64_t bytes) {
  auto const memory = allocate_host(bytes);
  auto const all = memory.span();
  for (std::uint64_t begin = 0; begin < bytes && has_spare_memory(); begin += kTouched) {
    auto const end = std::min(bytes, begin + kTouched);
    for (auto at = begin; at < end; at += kPage) all[at] = std::byte{1};
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
