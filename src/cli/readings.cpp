#include "cli/readings.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <ranges>
#include <string_view>
#include <utility>

namespace rankslice::cli {

void Readings::add(ReadPart const& part) {
  auto const [known, is_new] = sums_.try_emplace(part.by);
  auto& sum = known->second;
  if (is_new) sum.why = part.why;
  sum.why_differs = sum.why_differs || sum.why != part.why;
  sum.wanted += part.wanted;
  sum.read += part.read;
  sum.by_pread += part.by_pread;
  threads_ = std::max(threads_, part.threads);
}

std::vector<ReadBackend> Readings::by_bytes() const {
  std::vector<ReadBackend> ways;
  for (auto const& [way, sum] : sums_) ways.push_back(way);
  std::ranges::stable_sort(ways, std::greater(), [this](ReadBackend way) { return sums_.at(way).wanted; });
  return ways;
}

Json Readings::ways() const {
  if (sums_.empty()) return nullptr;
  std::map<ReadBackend, std::uint64_t> bytes;
  for (auto const& [way, sum] : sums_) {
    bytes[way] += sum.wanted - sum.by_pread;
    bytes[ReadBackend::pread] += sum.by_pread;
  }
  std::vector<std::pair<std::uint64_t, std::string_view>> ways;
  for (auto const& [way, count] : bytes) {
    if (count > 0) ways.emplace_back(count, name(way));
  }
  std::ranges::stable_sort(ways, std::greater(), [](auto const& way) { return way.first; });
  return fmt::format("{}", fmt::join(ways | std::views::values, ", "));
}

std::vector<std::string> Readings::lines() const {
  std::vector<std::string> lines;
  for (auto const way : by_bytes()) {
    auto const& sum = sums_.at(way);
    auto& line = lines.emplace_back(fmt::format("reading  {}: {}{}; {} wanted, {} read", name(way), sum.why,
                                                sum.why_differs ? " (other parts differ)" : "", human_bytes(sum.wanted),
                                                human_bytes(sum.read)));
    if (way != ReadBackend::pread && sum.by_pread > 0) line += fmt::format(", {} by pread", human_bytes(sum.by_pread));
  }
  if (!lines.empty()) lines.back() += fmt::format(", by {}", counted(static_cast<std::uint64_t>(threads_), "thread"));
  return lines;
}

}  // namespace rankslice::cli
