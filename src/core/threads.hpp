#pragma once

#include <cstdint>
#include <functional>

namespace rankslice {

/// Called after every block with its bytes: progress, and the place to throw when the work is to stop.
using BlockDone = std::function<void(std::uint64_t bytes)>;

/// What one of several threads does. It calls `done` after every block, and lets through what that throws.
using ThreadStep = std::function<void(int thread, BlockDone const& done)>;

/// Call step(0, …) to step(threads - 1, …) at once, the first on the caller's thread, and return when all have ended.
/// With one thread none is started, and it gets `done` itself. `done`, which may be null, is called on the caller's
/// thread only, with the bytes of all threads since it was called last. An error of one thread, or of `done`, stops the
/// others at their next block; then the error of the lowest thread that failed by itself is thrown. Where the system
/// gives fewer threads, the caller does the other steps one after the other: the limits of a container are no reason
/// not to load. Faults and profiling apart, the others are deaf to signals.
void in_threads(int threads, BlockDone const& done, ThreadStep const& step);

/// See that the system gives so many at once, the caller's own among them. @throws UsageError naming what limits them
void require_threads(int threads);

}  // namespace rankslice
