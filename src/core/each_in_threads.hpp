#pragma once

#include <cstddef>
#include <functional>

namespace rankslice {

/// Call step(i) once for every i below `count`, by up to `threads` threads, the caller's own among them; lower ones
/// begin first. The error of the lowest i that fails is thrown, as one thread alone would have met it first, and higher
/// ones are not begun any more. With one thread none is started.
void each_in_threads(std::size_t count, std::size_t threads, std::function<void(std::size_t)> const& step);

}  // namespace rankslice
