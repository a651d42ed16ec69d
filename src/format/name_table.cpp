#include "format/name_table.hpp"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>

namespace rankslice {

namespace {

std::size_t hash_of(std::string_view name) { return std::hash<std::string_view>{}(name); }

}  // namespace

NameTable::NameTable(std::vector<std::string_view> names) : names_(std::move(names)) {
  entries_.reserve(names_.size());
  for (std::size_t i = 0; i < names_.size(); ++i) entries_.push_back({hash_of(names_[i]), i});
  std::ranges::sort(entries_, [this](Entry const& a, Entry const& b) {
    if (a.hash != b.hash) return a.hash < b.hash;
    return std::tie(names_[a.place], a.place) < std::tie(names_[b.place], b.place);
  });
}

std::optional<std::size_t> NameTable::find(std::string_view name) const {
  auto const hash = hash_of(name);
  auto const found = std::ranges::partition_point(entries_, [&](Entry const& entry) {
    return entry.hash != hash ? entry.hash < hash : names_[entry.place] < name;
  });
  if (found == entries_.end() || names_[found->place] != name) return std::nullopt;
  return found->place;
}

std::optional<NameTable::Duplicate> NameTable::duplicate() const {
  std::optional<Duplicate> earliest;
  for (std::size_t i = 1; i < entries_.size(); ++i) {
    auto const &first = entries_[i - 1], &second = entries_[i];
    if (first.hash != second.hash || names_[first.place] != names_[second.place]) continue;
    if (!earliest || second.place < earliest->second) earliest = Duplicate{first.place, second.place};
  }
  return earliest;
}

}  // namespace rankslice
