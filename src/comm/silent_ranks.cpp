#include "comm/silent_ranks.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <vector>

namespace rankslice {
namespace {

constexpr std::size_t kMostNames = 6;

/// `names` one after another; past the sixth, what was left out: "and N more".
std::string list(std::span<std::string const> names, std::size_t left_out) {
  auto text = fmt::format("{}", fmt::join(names, ", "));
  if (left_out > 0) text += fmt::format(" and {} more", left_out);
  return text;
}

/// In their order.
std::string list_ranks(std::span<int const> ranks) {
  std::vector<std::string> spans;
  while (!ranks.empty() && spans.size() < kMostNames) {
    std::size_t length = 1;
    while (length < ranks.size() && ranks[length] == ranks[length - 1] + 1) ++length;
    auto const first = ranks.front();
    auto const last = ranks[length - 1];
    spans.push_back(first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last));
    ranks = ranks.subspan(length);
  }
  return list(spans, ranks.size());
}

std::string list_hosts(std::span<RankName const> ranks) {
  std::vector<std::string> hosts;
  for (auto const& name : ranks) hosts.push_back(name.host);
  std::sort(hosts.begin(), hosts.end());
  hosts.erase(std::unique(hosts.begin(), hosts.end()), hosts.end());
  auto const named = std::min(hosts.size(), kMostNames);
  return (hosts.size() == 1 ? "host " : "hosts ") + list(std::span(hosts).first(named), hosts.size() - named);
}

}  // namespace

std::string describe_silence(std::span<RankName const> silent, std::chrono::milliseconds timeout) {
  std::vector<int> ranks;
  for (auto const& name : silent) ranks.push_back(name.rank);
  return fmt::format("no answer from rank(s) {} ({}) within {:.1f} s", list_ranks(ranks), list_hosts(silent),
                     std::chrono::duration<double>(timeout).count());
}

std::string describe_leaver(RankName const& leaver) {
  return fmt::format("rank {} (host {}) left while others wait for it", leaver.rank, leaver.host);
}

std::string describe_absence(std::span<int const> missing, std::string_view where, std::chrono::milliseconds timeout) {
  return fmt::format("rank(s) {} did not come to {} within {:.1f} s", list_ranks(missing), where,
                     std::chrono::duration<double>(timeout).count());
}

}  // namespace rankslice
