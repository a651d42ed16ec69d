#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace rankslice {

/// A rank as people know it: its number in the world that the program started with, and its machine.
struct RankName {
  int rank = 0;
  std::string host;
};

/// "no answer from rank(s) 2, 5-7 (hosts h1, h3) within 3.0 s": at most six spans and six hosts, then "and N more".
/// `silent` is in the order of the ranks.
[[nodiscard]] std::string describe_silence(std::span<RankName const> silent, std::chrono::milliseconds timeout);
/// "rank 2 (host h1) left while others wait for it".
[[nodiscard]] std::string describe_leaver(RankName const& leaver);
/// "rank(s) 2, 5-7 did not come to WHERE within 3.0 s".
[[nodiscard]] std::string describe_absence(std::span<int const> missing, std::string_view where,
                                           std::chrono::milliseconds timeout);

}  // namespace rankslice
