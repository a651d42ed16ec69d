// Digests and transposes alone, by instruction set and bytes of an element, with what memory can do beside them:
// kernels_bench --benchmark_filter='transpose.*/AVX2/'

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "rankslice/buffer.hpp"
#include "rankslice/dtype.hpp"

#include "core/literals.hpp"
#include "io/memory.hpp"
#include "support/vector_target.hpp"
#include "transform/tensor_digest.hpp"
#include "transform/transpose.hpp"

namespace rankslice {

namespace {

constexpr auto kMemoryBytes = 64_MiB;  // more than any cache of one core
constexpr auto kStripBytes = 512_KiB;  // what loading has in its hands at a time
constexpr std::uint64_t kRowBytes = 4096;

Buffer memory(std::uint64_t bytes) {
  auto buffer = allocate_host(bytes);
  std::ranges::fill(buffer.span(), std::byte{0x5A});
  return buffer;
}

void say_bytes(benchmark::State& state, std::uint64_t bytes) {
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * state.iterations());
  state.counters["bytes"] = static_cast<double>(bytes) * static_cast<double>(state.iterations());
}

/// Time `work`, which handles so many bytes, with the kernels of one instruction set.
void measure(benchmark::State& state, test::VectorTarget target, std::uint64_t bytes,
             std::function<void()> const& work) {
  test::OnTarget const here(target);
  for (auto _ : state) {
    work();
    benchmark::ClobberMemory();
  }
  say_bytes(state, bytes);
}

DType dtype_of(std::uint64_t element) {
  switch (element) {
    case 1:
      return DType::U8;
    case 2:
      return DType::BF16;
    case 4:
      return DType::F32;
    default:
      return DType::I64;
  }
}

/// Of one expert as large as `bytes`, in runs as loading has them.
void digest(benchmark::State& state, test::VectorTarget target, std::uint64_t element, std::uint64_t bytes,
            bool swapped) {
  auto const columns = kRowBytes / element;
  auto const held = memory(bytes);
  TensorDigest const tensor(dtype_of(element), {1, bytes / kRowBytes, columns});
  std::vector<std::uint64_t> sums(1);
  measure(state, target, bytes, [&] {
    for (std::uint64_t begin = 0; begin < bytes; begin += kStripBytes) {
      auto const run = held.span().subspan(begin, kStripBytes);
      if (swapped) {
        tensor.add_swapped(begin / element, run, sums);
      } else {
        tensor.add(begin / element, run, sums);
      }
    }
    benchmark::DoNotOptimize(sums.data());
  });
}

/// A strip that was just read, again and again to other columns of experts in memory.
void transpose_strip(benchmark::State& state, test::VectorTarget target, std::uint64_t element) {
  auto const strip = memory(kStripBytes);
  auto const experts = memory(kMemoryBytes);
  auto const columns = kRowBytes / element;
  auto const rows = kStripBytes / kRowBytes;
  constexpr std::uint64_t kStrips = 8;  // of an expert
  measure(state, target, kMemoryBytes, [&] {
    for (std::uint64_t i = 0; i < kMemoryBytes / kStripBytes; ++i) {
      auto* const expert = experts.data.get() + i / kStrips * kStrips * kStripBytes;
      transpose({.data = strip.data.get(), .rows = rows, .columns = columns, .stride = columns}, element,
                expert + i % kStrips * rows * element, kStrips * rows);
    }
  });
}

/// A strip into one that is used at once: a result without gaps.
void transpose_in_cache(benchmark::State& state, test::VectorTarget target, std::uint64_t element) {
  auto const strip = memory(kStripBytes);
  auto const turned = memory(kStripBytes);
  auto const columns = kRowBytes / element;
  auto const rows = kStripBytes / kRowBytes;
  measure(state, target, kStripBytes, [&] {
    transpose({.data = strip.data.get(), .rows = rows, .columns = columns, .stride = columns}, element,
              turned.data.get(), rows);
  });
}

void copy_memory(benchmark::State& state) {
  auto const from = memory(kMemoryBytes);
  auto const to = memory(kMemoryBytes);
  for (auto _ : state) {
    std::memcpy(to.data.get(), from.data.get(), kMemoryBytes);
    benchmark::ClobberMemory();
  }
  say_bytes(state, kMemoryBytes);
}

void add_up_memory(benchmark::State& state) {
  auto const held = memory(kMemoryBytes);
  auto const* const numbers = reinterpret_cast<std::uint64_t const*>(held.data.get());
  for (auto _ : state) {
    benchmark::DoNotOptimize(std::accumulate(numbers, numbers + kMemoryBytes / 8, std::uint64_t{0}));
  }
  say_bytes(state, kMemoryBytes);
}

void register_all() {
  benchmark::RegisterBenchmark("memcpy", copy_memory);
  benchmark::RegisterBenchmark("read memory", add_up_memory);
  for (auto const target : test::vector_targets()) {
    for (std::uint64_t const element : {1U, 2U, 4U, 8U}) {
      auto const add = [&](std::string const& kernel, auto const& run) {
        auto const name = fmt::format("{}/{}/{}", kernel, hwy::TargetName(target.bit), element);
        benchmark::RegisterBenchmark(name.c_str(), run);
      };
      using State = benchmark::State;
      add("digest", [=](State& state) { digest(state, target, element, kMemoryBytes, false); });
      add("digest_swapped", [=](State& state) { digest(state, target, element, kMemoryBytes, true); });
      add("digest_in_cache", [=](State& state) { digest(state, target, element, kStripBytes, false); });
      add("transpose", [=](State& state) { transpose_strip(state, target, element); });
      add("transpose_in_cache", [=](State& state) { transpose_in_cache(state, target, element); });
    }
  }
}

}  // namespace

}  // namespace rankslice

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 64;
  rankslice::register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
