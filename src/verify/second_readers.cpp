#include "verify/second_readers.hpp"

#include <algorithm>
#include <map>

namespace rankslice {

std::vector<int> second_readers(std::vector<std::string> const& host_of_rank) {
  std::map<std::string, std::vector<int>> ranks_of_host;
  for (std::size_t rank = 0; rank < host_of_rank.size(); ++rank) {
    ranks_of_host[host_of_rank[rank]].push_back(static_cast<int>(rank));
  }
  std::vector<int> by_host;
  std::size_t most = 0;
  for (auto const& [host, ranks] : ranks_of_host) {
    by_host.insert(by_host.end(), ranks.begin(), ranks.end());
    most = std::max(most, ranks.size());
  }
  // A shift by the ranks of the fullest host leads everyone off their own, if no host has more than half of all ranks.
  auto const shift = most < by_host.size() ? most : 1;
  std::vector<int> second(host_of_rank.size());
  for (std::size_t i = 0; i < by_host.size(); ++i) {
    second[static_cast<std::size_t>(by_host[i])] = by_host[(i + shift) % by_host.size()];
  }
  return second;
}

}  // namespace rankslice
