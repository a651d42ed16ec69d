#include "format/hf_index.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <ranges>
#include <string_view>
#include <utility>

#include "rankslice/error.hpp"

#include "format/name_table.hpp"
#include "format/quote.hpp"
#include "format/strict_json.hpp"

namespace rankslice {

namespace {

using simdjson::dom::element;
using simdjson::dom::object;

constexpr std::string_view kShardSuffix = ".safetensors";

[[noreturn]] void refuse(std::string const& file, std::string const& problem) {
  throw FormatError(fmt::format("{}: {}", file, problem), file);
}

/// A member of an object that must not be there twice.
std::optional<element> unique_member(object const& parent, std::string_view key, std::string const& file) {
  std::optional<element> found;
  for (auto const [name, value] : parent) {
    if (name != key) continue;
    if (found) refuse(file, fmt::format("{} is given twice", key));
    found = value;
  }
  return found;
}

struct WeightMap {
  std::vector<std::string_view> tensors;
  std::vector<std::string_view> shards;  ///< Of each tensor.
};

WeightMap parse_weight_map(object const& entries, std::string const& file) {
  WeightMap map;
  map.tensors.reserve(entries.size());
  map.shards.reserve(entries.size());
  for (auto const [tensor, value] : entries) {
    std::string_view shard;
    if (value.get(shard) != simdjson::SUCCESS)
      throw FormatError(fmt::format("{}: weight_map: {}: expected the name of a file, found {}", file,
                                    in_quotes(tensor), excerpt(value)),
                        file, std::string(tensor));
    map.tensors.push_back(tensor);
    map.shards.push_back(shard);
  }
  if (auto const duplicate = NameTable(map.tensors).duplicate()) {
    auto const tensor = map.tensors[duplicate->first];
    throw FormatError(fmt::format("{}: weight_map: tensor {} is given twice, in {} and in {}", file, in_quotes(tensor),
                                  in_quotes(map.shards[duplicate->first]), in_quotes(map.shards[duplicate->second])),
                      file, std::string(tensor));
  }
  return map;
}

std::vector<std::string> distinct_shards(WeightMap const& map, std::string const& file) {
  std::vector<std::string_view> names;
  for (auto const shard : map.shards) {
    if (names.empty() || names.back() != shard) names.push_back(shard);  // neighbours mostly share a shard
  }
  std::ranges::sort(names);
  auto const repeated = std::ranges::unique(names);
  names.erase(repeated.begin(), repeated.end());
  for (auto const name : names) {
    if (auto const fault = fault_of_shard_name(name); !fault.empty())
      refuse(file, fmt::format("weight_map: the shard name {} is refused: {}", in_quotes(name), fault));
  }
  return {names.begin(), names.end()};
}

std::optional<std::uint64_t> parse_total_size(object const& root, std::string const& file) {
  auto const metadata = unique_member(root, "metadata", file);
  object members;
  if (!metadata || metadata->get(members) != simdjson::SUCCESS) return std::nullopt;
  auto const total = unique_member(members, "total_size", file);
  std::uint64_t bytes = 0;
  if (!total || total->get(bytes) != simdjson::SUCCESS) return std::nullopt;
  return bytes;
}

}  // namespace

std::string_view fault_of_shard_name(std::string_view name) {
  if (!name.ends_with(kShardSuffix)) return "it does not end in .safetensors";
  if (name.starts_with('/')) return "it is an absolute path";
  auto const forbidden = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\'; };
  if (std::ranges::any_of(name, forbidden)) return "it contains a backslash or a control character";
  for (auto const component : std::views::split(name, '/')) {
    std::string_view const text(component.begin(), component.end());
    if (text.empty() || text == ".") return "it contains an empty or \".\" component";
    if (text == "..") return "it leads out of the folder by \"..\"";
  }
  return {};
}

std::vector<std::size_t> HfIndex::tensors_per_shard() const {
  std::vector<std::size_t> counts(shards.size());
  for (auto const& entry : entries) ++counts[entry.shard];
  return counts;
}

HfIndex parse_hf_index(std::span<std::byte const> json, std::string const& file) {
  StrictJson const document(json, 0, file);
  auto const weight_map = unique_member(document.root(), "weight_map", file);
  object entries;
  if (!weight_map) refuse(file, "expected a weight_map, found none");
  if (weight_map->get(entries) != simdjson::SUCCESS)
    refuse(file, fmt::format("weight_map: expected an object, found {}", excerpt(*weight_map)));
  auto const map = parse_weight_map(entries, file);
  if (map.tensors.empty()) refuse(file, "weight_map: expected tensors, found none");

  HfIndex index;
  index.shards = distinct_shards(map, file);
  index.total_size = parse_total_size(document.root(), file);
  index.entries.reserve(map.tensors.size());
  for (std::size_t i = 0; i < map.tensors.size(); ++i) {
    auto const shard = std::ranges::lower_bound(index.shards, map.shards[i]);
    index.entries.push_back({std::string(map.tensors[i]), static_cast<std::size_t>(shard - index.shards.begin())});
  }
  return index;
}

}  // namespace rankslice
