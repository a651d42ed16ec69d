#include "core/holdings.hpp"

#include <algorithm>
#include <utility>

namespace rankslice {

Division::Division(std::vector<Slice> slices) : slices_(std::move(slices)) {
  std::map<Slice, std::vector<int>> holders;
  for (std::size_t rank = 0; rank < slices_.size(); ++rank) {
    if (!slices_[rank].empty()) holders[slices_[rank]].push_back(static_cast<int>(rank));
  }
  for (auto& [slice, ranks] : holders) parts_.push_back({.slice = slice, .holders = std::move(ranks)});
  for (auto const& [slice, ranks] : parts_) {
    reach_.push_back(std::max(slice.part.end, reach_.empty() ? 0 : reach_.back()));
  }
}

std::span<HeldPart const> Division::parts_around(Range experts) const {
  auto const begin_of = [](HeldPart const& part) { return part.slice.part.begin; };
  auto const first = std::ranges::upper_bound(reach_, experts.begin) - reach_.begin();
  auto const end = std::ranges::lower_bound(parts_, experts.end, {}, begin_of) - parts_.begin();
  if (end <= first) return {};
  return std::span(parts_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(end - first));
}

std::size_t Division::part_of(int rank) const {
  auto const& slice = held_by(rank);
  if (slice.empty()) return parts_.size();
  return static_cast<std::size_t>(std::ranges::lower_bound(parts_, slice, {}, &HeldPart::slice) - parts_.begin());
}

Division const* Holdings::division(std::uint32_t parameter) const {
  auto const found = division_of.find(parameter);
  return found == division_of.end() ? nullptr : &divisions[found->second];
}

}  // namespace rankslice
