#include "cli/bench_memory.hpp"

#include <sys/sysinfo.h>

#include <algorithm>
#include <cstddef>

#include "core/literals.hpp"
#include "io/memory.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kTouched = 2_MiB;  // before it is looked again whether there is more
constexpr auto kPage = 4_KiB;     // or larger

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

}  // namespace rankslice::cli
