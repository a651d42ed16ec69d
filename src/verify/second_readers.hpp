#pragma once

#include <string>
#include <vector>

namespace rankslice {

/// For each rank the one that reads its bytes again: another one where there is another, on another host for as many
/// as can be, and each rank for just one. Pure.
[[nodiscard]] std::vector<int> second_readers(std::vector<std::string> const& host_of_rank);

}  // namespace rankslice
