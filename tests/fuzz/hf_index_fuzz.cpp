// Input: an index as it is.

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <set>

#include "format/hf_index.hpp"
#include "fuzz/fuzz.hpp"

namespace {

using namespace rankslice;
using namespace rankslice::fuzz;

void require_harmless(std::string const& shard) {
  std::filesystem::path const path(shard);
  require(path.is_relative() && shard.ends_with(".safetensors"), "a shard is a safetensors file below its folder");
  require(shard.find('\0') == std::string::npos, "a shard has a name for C");
  require(*path.lexically_normal().begin() != "..", "a shard does not lead out of its folder");
}

void require_consistent(HfIndex const& index) {
  require(!index.entries.empty(), "an index names tensors");
  require(std::ranges::is_sorted(index.shards), "shards are sorted");
  require(std::ranges::adjacent_find(index.shards) == index.shards.end(), "no shard is listed twice");
  std::ranges::for_each(index.shards, require_harmless);
  std::set<std::string_view> tensors;
  for (auto const& entry : index.entries) {
    require(entry.shard < index.shards.size(), "an entry names a shard of the list");
    require(tensors.insert(entry.tensor).second, "no tensor is listed twice");
  }
  auto const counts = index.tensors_per_shard();
  require(std::ranges::find(counts, 0U) == counts.end(), "every shard has tensors");
  require(std::accumulate(counts.begin(), counts.end(), std::size_t{0}) == index.entries.size(), "each tensor counts");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  HfIndex index;
  if (accepts([&] { index = parse_hf_index(std::as_bytes(std::span(data, size)), "model.safetensors.index.json"); }))
    require_consistent(index);
  return 0;
}
