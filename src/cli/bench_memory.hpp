#pragma once

#include <cstdint>

namespace rankslice::cli {

/// Touch so many bytes of fresh memory and give them back, as far as an eighth of the host's memory stays free. A
/// virtual machine that has been idle for seconds has left its free memory to its host; to get that back takes ten
/// times as long as a first touch otherwise does, and would be counted against whichever run comes first. Local.
/// @throws std::bad_alloc
void call_in_memory(std::uint64_t bytes);

}  // namespace rankslice::cli
